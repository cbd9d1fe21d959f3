// Weights that lie in a mapped file and may not be in memory: asking the system to read them before they are needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"

namespace kh {

// Have these bytes read soon; nobody waits for them here. Does nothing where the system has no such request.
void read_ahead(const uint8_t* data, size_t bytes);

// Where an operation has weights: those of the next product, which are read while this one is computed. Experts are not known so early.
void read_next(const kh_model& model, const kh_op& op);

}  // namespace kh
