// What a step takes on trust.
#pragma once

#include "model.h"

namespace kh {

// Every number that is an index lies in its range, and sequences hang together.
bool sound(const kh_model& model, const kh_cache* cache, const kh_batch& batch);

}  // namespace kh
