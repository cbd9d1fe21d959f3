/* What a training step computes natively: products and their gradients, causal attention and its gradient, a few operations on rows. Plain C,
 * called through ctypes like kh.h, whose errors it gives.
 *
 * Numbers are bfloat16 (uint16_t) or float32; inputs of products are rounded to bfloat16, sums and what is said to be float32 are float32. The
 * order of every sum is fixed by the shapes: the number of threads, and who takes which piece, change no bit.
 *
 * Shapes   T packed rows, S sequences, H query heads, G key heads, E head size, F size of a value.
 */
#ifndef KH_TRAIN_H
#define KH_TRAIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

enum { KH_BFLOAT16 = 0, KH_FLOAT32 = 1 };

/* A matrix whose numbers lie `row` numbers apart from row to row and `deep` from column to column; one of the two is 1. */
typedef struct {
  const void* data;
  int64_t row, deep;
  int32_t type;
} kh_side;

typedef enum {
  KH_STORE = 0,         /* out ← left · rightᵀ (+ bias) */
  KH_ADD_TO = 1,        /* out ← out + left · rightᵀ; out is float32 */
  KH_LOG_SUM = 2,       /* the products are logits: most and sum go on over their columns, at_target takes those of the targets */
  KH_SOFTMAX_MINUS = 3  /* out ← (exp(logit − log_sum) − (1 at the target, else 0)) · factor, logits being the products */
} kh_finish;

/* left is m × k, right n × k. */
typedef struct {
  int32_t m, n, k, finish;
  kh_side left, right;
  void* out; /* m rows, `stride` numbers apart */
  int64_t stride;
  int32_t out_type;
  int32_t first_column;   /* number of the first column, as targets count */
  const float* bias;      /* n numbers, or NULL */
  const int64_t* targets; /* m: a column, or −1 for none */
  float *most, *sum;      /* m × 16 each: of every sixteenth column the greatest logit, and the sum of exp(logit − greatest) */
  float* at_target;       /* m */
  const float *log_sum, *factor; /* m each */
} kh_product;

/* Causal attention of whole sequences; rows of q, k, v and what belongs to them lie one after another: [T][heads][size]. */
typedef struct {
  int32_t num_sequences, heads, key_heads, key_size, value_size;
  int32_t window; /* a row sees so many, itself included; 0: all before it */
  float scale;    /* of scores, > 0 */
  const int32_t* starts; /* S + 1 */
  const uint16_t *q, *k, *v;
  uint16_t* out;   /* [T][H][F] */
  float* log_sums; /* [H][T]: of the exponentials of scaled scores */
  const uint16_t* out_gradient; /* from here on for the gradient only */
  uint16_t *q_gradient, *k_gradient, *v_gradient;
} kh_attention;

/* Operations on rows of bfloat16. */
typedef struct {
  int32_t rows, columns;
  const uint16_t *x, *y;  /* y: a second input, or the gradient of the result */
  const uint16_t* z;      /* a gradient, where there are two inputs */
  uint16_t *out, *out2;
  const float* weight;    /* columns; of a norm */
  float* factors;         /* rows: 1 / root of the mean square, of a norm */
  float* weight_gradient; /* columns */
  float epsilon, offset;
  const float *cosines, *sines; /* of rotations: [rows / heads][half] */
  int32_t heads, half;
  float direction; /* 1, or −1 to turn back */
} kh_rows;

typedef struct kh_team kh_team;

/* Threads that work on one call at a time, the caller among them; NULL without memory. */
kh_team* kh_team_new(int32_t threads);
void kh_team_free(kh_team*);
int32_t kh_train_product(kh_team*, const kh_product*);
int32_t kh_train_attend(kh_team*, const kh_attention*);
int32_t kh_train_attend_back(kh_team*, const kh_attention*);
int32_t kh_train_norm(kh_team*, const kh_rows*);      /* out ← x · factor · (weight + offset), factors ← 1 / sqrt(mean(x²) + epsilon) */
int32_t kh_train_norm_back(kh_team*, const kh_rows*); /* out ← gradient of x, weight_gradient, from x, factors and the gradient y */
int32_t kh_train_gate(kh_team*, const kh_rows*);      /* out ← x · sigmoid(x) · y */
int32_t kh_train_gate_back(kh_team*, const kh_rows*); /* out, out2 ← gradients of x and y, from the gradient z */
int32_t kh_train_rotate(kh_team*, const kh_rows*);    /* out ← x, whose columns are one head, turned */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
