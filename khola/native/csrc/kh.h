/* The C ABI of khola's native library: plain C, called through ctypes. No exception crosses it.
 *
 * A program is a flat list of operations over slots, recorded once from an architecture (khola/ops/native_ops.py). `kh_step` executes it
 * for one step: some packed rows of several sequences. Every function that can fail returns 0 or a negative kh_error.
 *
 * Shapes   T packed rows of a step, R rows whose logits are wanted, S sequences, N outputs and K inputs of a matrix, H query heads,
 *          G key heads, E head size. All arrays are row-major; every pointer is 64-byte aligned where it says so.
 */
#ifndef KH_H
#define KH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Everything else in the library is hidden. */
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

#define KH_ABI 10 /* raised whenever a structure or a meaning below changes; checked when the library is loaded */
#define KH_PAGE 32 /* tokens in one page of the cache */

typedef enum {
  KH_OK = 0,
  KH_NO_MEMORY = -1,
  KH_BAD_ARGUMENT = -2, /* a shape or number that the packer or the program cannot have */
  KH_NO_KERNEL = -3,    /* no implementation here handles it */
  KH_NOT_FINITE = -4    /* the scale or minimum of a group of weights, or a logit, is NaN or infinite */
} kh_error;

#define KH_ROUGH 1 /* what kh_step gives instead of KH_OK: logits whose margins are not 0 are approximations */

/* A packed matrix of N outputs and K inputs: value = scale · (code − zero) + minimum.
 *
 * Layout "KT": a tile is 16 outputs × 64 inputs; tiles lie [N/32][K/64][2], so that two neighbouring tiles of 16 outputs (a strip pair)
 * form one linear stream. N is padded to 32 and K to 64 with zeros. One tile is, back to back:
 *   codes    bits 4: 512 B  byte (r, n, j), r 0..7: low nibble is input 4r + j, high nibble input 32 + 4r + j
 *            bits 5: 512 B as above + 128 B: u64 of quad q (inputs 4q..4q+3), bit 4n + j is bit 4 of the code
 *            bits 6: 512 B as above + 256 B: byte (b, n, j), b 0..3: bits 2i, 2i+1 are bits 4, 5 of input 4(b + 4i) + j
 *            bits 8: 1024 B byte (q, n, j): input 4q + j
 *            bits 8, split: 512 B as 4 bits, of the high nibbles of the codes; see below
 *            bits 16: 2048 B bfloat16 (h, p, n, j), h 0..1, p 0..15, j 0..1: input 32h + 2p + j
 *   scales   float16 [64 / group][16], not for 16 bits
 *   minima   float16 [64 / group][16], only with has_min
 * Codes are unsigned.
 *
 * A split matrix (bits 8, group 32, zero 128, no minima) lies in three parts: all tiles as above with the high nibbles of the codes and the
 * scales; then the low nibbles of all codes, 512 B a tile, in the same order; then, for every group of 32 inputs and every 32 outputs, float32
 * [K/32][N/32], the greatest square of their scales. The first part alone says what a product is about, and the last how much that is off. */
typedef struct {
  int32_t n, k;         /* as on disk */
  int32_t n_pad, k_pad; /* multiples of 32 and 64 */
  uint8_t bits;         /* 4, 5, 6, 8 or 16 */
  uint8_t group;        /* inputs that share a scale: 16, 32 or 64 */
  uint8_t zero;         /* code that means zero */
  uint8_t has_min;
  uint8_t split;        /* 1: in two planes of 4 bits */
  int32_t tile_bytes;   /* one tile of 16 × 64, scales and minima included, low nibbles of a split matrix not; a multiple of 64 */
  const uint8_t* data;  /* 64-byte aligned */
  const float* bias;    /* n_pad numbers, or NULL */
} kh_weight;

typedef enum {
  KH_EMBED = 1,  /* out ← rows `ids` of table w0 */
  KH_RMS_NORM,   /* out ← in0 / sqrt(mean(in0²) + f0) · (vector w0 + f1); f1 is 0 or 1; over heads of size arg0, or over rows (arg0 0) */
  KH_LAYER_NORM, /* out ← (in0 − mean) / sqrt(var + f0) · vector w0 (+ its bias) */
  KH_LINEAR,     /* out ← in0 · w0ᵀ (+ bias), see flags */
  KH_ROTATE,     /* out ← in0 turned by rope table arg0; heads of size arg1 */
  KH_ATTEND,     /* out ← attention of q in0, k in1, v in2; layer arg0, head size arg1, window arg2 (0: none); scale f0 */
  KH_SILU_MUL,   /* out ← in0 · sigmoid(in0) · in1 */
  KH_GELU,
  KH_SIGMOID,
  KH_ADD, /* out ← in0 + in1 */
  KH_MUL, /* out ← in0 · in1; in0 may be one column, which then multiplies all of in1 */
  KH_ROWS,  /* out ← the wanted rows of in0 */
  KH_SLICE, /* out ← columns arg0 .. arg0 + width(out) of in0; or, with arg1, columns arg0 .. arg0 + arg2 of every arg1 columns of in0 */
  /* made by the peephole pass only */
  KH_ROTATE_STORE, /* in0 is q‖k‖v: q is turned into out, k is turned and written with v to layer arg0; head size arg1, heads arg2, key heads
                      arg3, rope table w1 */
  KH_ATTEND_STORED, /* out ← attention of q in0 over what ROTATE_STORE wrote; fields as KH_ATTEND, heads arg3 */
  KH_COPY_OUT,     /* the caller's result ← in0 */
  /* mixtures of experts */
  KH_ROUTE,   /* out ← numbers of arg0 experts, the best first, then their shares: of logits in0, with choice bias w0; arg1 groups, of which
                 arg2 may be chosen from; arg3: see below; the divisor is at least f0; shares are multiplied by f1 */
  KH_EXPERTS, /* out ← Σ share · ((silu(in0 · gateᵀ) · (in0 · upᵀ)) · downᵀ) over the experts that in1, of KH_ROUTE, names: arg1 of arg0. The
                 matrices of all experts lie one below the other: w0 alternates gate and up, w1 is down */
  /* latent attention */
  KH_HEAD_LINEAR = 40, /* for each of arg0 heads: arg1 columns of out ← its own columns of in0 · its own matrixᵀ, and behind them, if there is an
                          in1, its own columns of in1. The matrices of all heads lie one below the other in w0, each padded to 32 outputs */
  KH_ATTEND_LATENT,    /* out ← attention of the heads of q in0 over latents: latents in1 and turned keys in2 go to layer arg0, behind each other as
                          the one key head, whose values are the latents; scale f0; arg2 is 0 */
  /* states of sequences, in layer arg0 */
  KH_DECAY_SCAN = 50, /* out ← qᵀS of q in0, after S ← decay S + k vᵀ with k in1, v in2; the vector w0 has a decay for each head */
  KH_DELTA_SCAN,      /* out ← qᵀS, after S ← exp(log decay) S, S ← S + k (share (v − Sᵀk))ᵀ; q and k have arg3 heads and are divided by their
                         lengths; log decays are slot arg1, shares slot arg2: one column a head of v */
  KH_LOG_DECAY,       /* out ← −exp(vector w0) · log(1 + exp(in0 + vector w1)) */
  KH_CAUSAL_CONV,     /* out ← y · sigmoid(y), y[t] ← Σ vector w0 [taps][columns] · in0[t − taps + 1 …], the newest row last */
  KH_SCALE,           /* out ← in0 · f0 */
  /* hidden states that one program leaves for another */
  KH_KEEP = 60, /* the caller's `kept` ← in0, unless it is NULL; out is not written */
  KH_KEPT,      /* out ← the caller's `kept` */
  KH_JOIN       /* out ← the columns of in0, and behind them those of in1 */
} kh_opcode;

enum {
  KH_ADD_IN1 = 1,   /* KH_LINEAR: out ← in1 + result */
  KH_GATED = 2,     /* KH_LINEAR: tiles alternate gate and up; out ← silu(gate) · up, half as wide */
  KH_NORMED = 4,    /* KH_LINEAR: in0 is RMS-normed with vector w1, epsilon f0 and offset f1 on its way in */
  KH_HEAD = 8       /* KH_LINEAR: out is the logits; the greatest of every 32 is kept too */
};

enum { KH_SIGMOID_SCORES = 1, KH_NORMALISED = 2 }; /* KH_ROUTE, arg3: scores are no softmax; shares are divided by their sum */

typedef struct {
  uint16_t op, flags;
  int32_t in0, in1, in2, out; /* slots, −1 where unused */
  int32_t w0, w1;             /* weights or vectors, −1 where unused */
  int32_t arg[4];
  float f[2];
} kh_op;

typedef struct {
  const float* weight; /* n numbers */
  const float* bias;   /* n numbers, or NULL */
  int32_t n;
} kh_vector;

typedef struct {
  const float* frequencies; /* half of them a token, radians */
  int32_t half;
  float factor; /* multiplies cosines and sines */
} kh_rope;

typedef struct {
  int32_t heads, key_size, value_size;
} kh_layer_cache;

/* What a layer keeps of a sequence; zeros where it keeps tokens. */
typedef struct {
  int32_t heads, key_size, value_size;
  int32_t width, taps; /* of a convolution: columns, and rows that it sees, 1 where there is none */
} kh_state_cache;

/* How a cache keeps numbers. */
typedef enum {
  KH_CACHE_BFLOAT16 = 0,
  KH_CACHE_INT8 = 1,   /* codes, and a scale in bfloat16 for the key and one for the value of every token and key head */
  KH_CACHE_FLOAT32 = 2 /* for precise programs, and only for those */
} kh_cache_form;

typedef struct {
  int32_t num_ops, num_slots, num_weights, num_vectors, num_ropes, num_layers;
  const kh_op* ops;
  const int32_t* slot_width; /* columns of each slot */
  const int32_t* slot_rows;  /* 0: one row a packed row; 1: one row a wanted row */
  const kh_weight* weights;
  const kh_vector* vectors;
  const kh_rope* ropes;
  const kh_layer_cache* layers;
  int32_t max_rows, max_wanted; /* greatest T and R of any step */
  int32_t max_context;          /* greatest position plus one */
  int32_t precise;              /* 1: inputs of products, keys and values are not rounded, and rows of answers and prompts are alike */
} kh_program;

/* One step. See Step in khola/ops/vocabulary.py. */
typedef struct {
  int32_t num_rows, num_sequences, num_wanted;
  const int32_t* ids;       /* T */
  const int32_t* positions; /* T */
  const int32_t* starts;    /* S + 1 */
  const int32_t* lengths;   /* S */
  const int32_t* wanted;    /* R */
  const uint8_t* answers;   /* T: 1 where the row is a token of an answer, which is computed with int8 inputs; 0 where it is one of a prompt,
                               computed in bfloat16; NULL: all are of prompts */
  const uint8_t* drawn;     /* R: 1 where a token is drawn from the logits, which int8 inputs give; 0 elsewhere; NULL: from none */
  const int32_t* pages;     /* S × page_stride, −1 where unused */
  int32_t page_stride;
  float* logits;      /* the result: R (or T, where the program does not end on wanted rows) × its width */
  float* block_max;   /* R × ceil(width / 32): the greatest of every 32 logits, NaN where one of them is not finite; or NULL */
  /* Where all three are given, nobody wants more of a row than kh_best finds, and the head may be read half: KH_ROUGH says that it was. */
  float* margins;     /* R × ceil(width / 32): how far logits may be off; 0 where they are exact, and kh_best makes more of them so */
  float* inputs;      /* R × inputs of the head: its input, for kh_best */
  const int32_t* best; /* R: how many of the best of a row will probably be looked for, 1 or more; these are made exact at once */
  const int32_t* states; /* S × 2: slot that a sequence's state is read from, −1 where it starts, and another that it is written to; NULL where
                            the program keeps none */
  float* kept;           /* T × the columns of KH_KEEP or KH_KEPT; NULL where nobody wants them */
} kh_batch;

/* One row of logits, as a step left it, and how they are changed before the best are found: in float32, and in this order,
 * x ← x + bias, x ← x > 0 ? x / penalty : x · penalty, x ← x − minus, x ← x brought into the range of finite numbers. */
typedef struct {
  float* logits;
  float* block_max;
  float* margins;          /* NULL: all logits are exact */
  const float* input;      /* of the head, where there are margins */
  int32_t num_tokens;      /* logits from here on do not count */
  int32_t num_changed;
  const int32_t* changed;  /* ids, none twice */
  const float *bias, *penalty, *minus; /* one a changed id */
} kh_row;

typedef struct kh_model kh_model;
typedef struct kh_cache kh_cache;

int32_t kh_abi(void);
/* Name of the instruction set in use: "amx", "avx512", "avxvnni", "avx2", "dotprod", "neon", "scalar". */
const char* kh_isa(void);
/* Choose the best instruction set of this processor, or `wanted` if it is not empty and this processor has it. */
int32_t kh_choose(const char* wanted);
/* Whether this build and this processor both have an instruction set: 1 or 0. What was chosen stays chosen, for other threads too. */
int32_t kh_has(const char* name);

/* The form in which rows of one kind are packed without loss ("Q4_0", "Q6_K", "BF16", "F32", ...; F16 and F32 are rounded to bfloat16, and
 * products of two scales, as in Q4_K, to float16): fills bits, group, zero, has_min, tile_bytes, n_pad and k_pad. */
int32_t kh_form(const char* kind, int32_t n, int32_t k, kh_weight* form);
/* Widen `form` so that it can also hold what `other` holds: several tensors joined into one matrix share a form. */
int32_t kh_widen(kh_weight* form, const kh_weight* other);
/* Split a form of 8 bits; KH_NO_KERNEL where it cannot be split, or where the chosen instruction set would not gain by it. */
int32_t kh_split(kh_weight* form);
size_t kh_packed_bytes(const kh_weight* form);
/* Pack `rows` rows of one kind, as they lie in a model file, as outputs `outputs[i]` (NULL: i) of the matrix at `out`, which was zero before. */
int32_t kh_pack(const char* kind, const void* raw, size_t raw_bytes, int32_t rows, const int32_t* outputs, const kh_weight* form, void* out);
/* The values of a packed matrix, N × K floats: what the kernels compute with. */
int32_t kh_unpack(const kh_weight* weight, float* out);

/* Pages of KH_PAGE tokens in every layer, in one of the forms of kh_cache_form; NULL where they do not fit into memory. */
kh_cache* kh_cache_new(const kh_layer_cache* layers, int32_t num_layers, int32_t num_pages, int32_t form);
void kh_cache_free(kh_cache*);
size_t kh_cache_bytes(const kh_layer_cache* layers, int32_t num_layers, int32_t num_pages, int32_t form);
/* Slots for the states of sequences in every layer, in float32; once for a cache. */
int32_t kh_cache_keep_states(kh_cache*, const kh_state_cache* layers, int32_t num_layers, int32_t num_slots);
/* Memory of one slot in all layers. */
size_t kh_state_bytes(const kh_state_cache* layers, int32_t num_layers);

/* The program's arrays are copied; weights and vectors stay the caller's and must live as long as the model. */
kh_model* kh_model_new(const kh_program* program, int32_t threads);
void kh_model_free(kh_model*);
/* Whether the weights are parts of a mapped file that memory may not hold all of: those that a step needs next are then asked for ahead. */
void kh_stream(kh_model*, int32_t on);
int32_t kh_step(kh_model*, kh_cache*, const kh_batch*);
/* The greatest logits of a row after its changes, at most `most`, none below `least`; exact whatever the row's margins. Greatest first, equal
 * ones by id. Gives how many, or a kh_error. Not while the model runs a step, nor twice at once. */
int32_t kh_best(kh_model*, const kh_row*, int32_t most, float least, int32_t* ids, float* logits);
/* Seconds spent in each opcode since the last call, by opcode; for profiles. */
int32_t kh_profile(kh_model*, double* seconds, int32_t num);
/* Rows of a slot as the last step left them, `stride` floats apart; NULL if there is no such slot. For tests and comparisons layer by layer. */
const float* kh_slot(kh_model*, int32_t slot, int32_t* stride);
/* Fill every buffer that a step writes before it reads with NaN, so that a test sees a kernel that reads first. */
void kh_poison(kh_model*);

/* Multiply in registers, `rounds` times, with the unit of number `index` of this processor: its name, and the operations that were done.
 * KH_BAD_ARGUMENT where there is no such unit. For measurements; see rates.h. */
int32_t kh_multiply(int32_t index, int64_t rounds, const char** name, int64_t* operations);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
