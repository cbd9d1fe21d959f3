"""Every tolerance of the numeric tests, each with the measurement that justifies it.

None of them is widened in the commit that needs it. A test that uses one also fails when a fault is planted (`tests/models/contract.py`,
where the least visible of the five faults moves a logit by 0.009). Measured on x86-64 with AVX-512, OpenBLAS 0.3.31, torch 2.13.
"""

OP_FLOAT32 = 1e-12
"""NMSE of an op in float32 against its formula in float64, sizes up to 1,000. Measured: at most 1.2e-13, in sums of 1,000 products."""

OP_FLOAT64 = 1e-28
"""NMSE of an op in float64 against an independent formula in float64. Measured: at most 1e-30."""

OP_BFLOAT16 = 1e-5
"""NMSE of an op in bfloat16 against the float64 formula of the same rounded inputs. One rounding to 8 bits has 2.8e-6; attention rounds
its weights as well. Measured: at most 6.6e-6."""

PRECISE = 1e-12
"""NMSE of native products and attention in float32, which round nothing but sums, against their formulas in float64. Measured: at most
1.6e-13."""

PRECISE_LOGITS = 1e-11
"""NMSE of logits of a tiny random model, natively without rounding and with numpy, both in float32. Measured: at most 1.2e-12."""

BFLOAT16_SHARE = 1.2
"""Squared error of bfloat16 logits, as a share of transformers' own. Measured: 0.85 to 1.02."""

LATENT_BFLOAT16 = 4e-5
"""The same of latent attention, which rounds keys and values, or queries and mixtures, on its way. Measured: at most 1.2e-5."""

BFLOAT16_STATES = 1.4
"""The same for tiny models with delta rules, of whose error a few heads that read next to nothing have most. Measured: 0.73 to 1.28."""

EXPERTS_BFLOAT16 = 1e-4
"""The same of a mixture of experts, which rounds seven times on its way: gate, up, their product and its factor, each expert's result, its
share, and the sum. Measured: at most 5.1e-5, in a single row of 16 numbers."""

EXPERTS_INT8 = 3e-4
"""NMSE of a mixture of experts whose inputs, and what the gates let through, are rounded to 8 bits. Measured: at most 1.7e-4."""

INT8_PRODUCT = 1e-4
"""NMSE of a product whose input is rounded to 8 bits with a scale for every 32, against exact inputs. Measured: at most 5e-5."""

INT8_CACHE = 1.3e-4
"""NMSE of attention over keys and values in 8 bits, a scale for every token and head, against exact ones. Codes are off by a twelfth of
their step squared: of normal numbers whose greatest is 2.4 to 2.9, 3.0e-5 to 4.4e-5, once for the values and, through scores that spread by
1.5, about twice for the keys. Measured: at most 1.13e-4, heads of 64 to 256."""

GRADIENT = 1e-9
"""NMSE of a gradient in float32 against the reference's. Measured on tiny models: at most 4e-12."""

LOGITS = 5e-5
"""Largest difference of logits in float32 from transformers, tiny random models with logits up to 2. Measured: 3.3e-6; 7.2e-6 for hidden
states, which are larger."""

PARITY_SLACK = 3.0
"""How much further from transformers a logit may lie than was recorded (`tests/models/parity.json`). Other processors and BLAS sum in
another order. Measured: a factor of 0.8 to 1.3 from AVX-512 to AVX2, of 0.8 to 1.7 to SSE with two threads."""

PARITY_LEAST = 2e-6
"""Differences up to here are not compared: a few units in the last place of logits up to 2."""

CACHED = 1e-5
"""Largest difference of logits between a whole prompt and the same prompt through the cache, or packed beside others. BLAS sums in
another order for another number of rows. Measured: 3.1e-6."""

CACHED_STATES = 5e-5
"""The same, and that between float32 and float64, for tiny models with delta rules: what is read of a state of few random keys is often
next to nothing, and a norm enlarges it, rounding and all. Measured: 1.0e-5, and as much between transformers in float32 and float64."""

FLOAT32_FLOAT64 = 1e-5
"""Largest difference of logits between the float32 and the float64 interpreter. Measured: 2.3e-6."""

FREQUENCIES = 4e-7
"""Relative difference of rotary frequencies from transformers, which works in float32 where khola works in float64 and rounds once:
a few units in the last place. Measured: 2.8e-7, in the blended band of llama3 scaling."""

QUANTISED = {"Q8_0": 1.2e-3, "Q4_0": 0.3}
"""NMSE of logits when all matrices of a tiny random model are quantised. Weights alone have 2.9e-5 and 7.4e-3; 21 matrices in a row and
random attention add up to 10 to 35 times that. Measured: 9.6e-4 and 0.26. What decides is the test beside it: the same bits as
the dequantised values give."""

QUANTISED_EXPERTS = {"Q8_0": 3e-3, "Q4_0": 0.3}
"""The same for mixtures of experts, where a rounding may send a token to another expert. Measured: 1.8e-3 and 0.19."""

QUANTISED_LATENT = {"Q8_0": 5e-2, "Q4_0": 0.7}
"""The same of DeepSeek's form, where scores are 1.9 times as large besides and groups of experts change at once. Measured: 2.9e-2, 0.49."""

QUANTISED_STATES = {"Q8_0": 6e-2, "Q4_0": 1.5}
"""The same for tiny models with delta rules: the sign of a first token's q k is that of what its head reads, and some are near zero.
Measured: 4.2e-2 and 1.0, so that the test beside it decides alone."""

TIE = 1e-3
"""Gap between the two best logits below which two float32 implementations may rightly choose different tokens."""

WEIGHT_NMSE = {
    "BF16": 3.1e-6, "F16": 4.8e-8, "Q8_0": 2.8e-5, "Q5_1": 1.35e-3, "Q5_0": 1.8e-3, "Q4_1": 5.7e-3, "Q4_0": 7.2e-3,
    "Q6_K": 3.2e-4, "Q5_K": 1.36e-3, "Q4_K": 5.7e-3, "INT8G64": 3.5e-5, "INT4G64": 8.9e-3,
}  # fmt: skip
"""NMSE of a round trip of N(0, 1) through a number format: what was measured, times 1.1. Measured on 2^20 values: the table of
`docs/formats.md`. Rounding to bfloat16 has 2.8e-6, to float16 4.3e-8."""

WEIGHT_NMSE_HEAVY = {
    "BF16": 3.1e-6, "F16": 4.8e-8, "Q8_0": 5.5e-5, "Q5_1": 1.95e-3, "Q5_0": 3.45e-3, "Q4_1": 8.1e-3, "Q4_0": 1.36e-2,
    "Q6_K": 5.3e-4, "Q5_K": 2.0e-3, "Q4_K": 8.1e-3, "INT8G64": 8.6e-5, "INT4G64": 2.0e-2,
}  # fmt: skip
"""The same for Student's t with four degrees of freedom, whose outliers take codes from the other values of their block."""

NATIVE_OP = 1e-13
"""NMSE of an op of the native interpreter without products, in float32, against numpy. Measured: at most 4e-15."""

NATIVE_LOGITS = 2e-3
"""NMSE of logits and hidden states of a tiny random model, natively against numpy: inputs of products are rounded to 8 bits or
bfloat16, weights to bfloat16. Measured: at most 6e-4."""

NATIVE_LATENT = 1e-2
"""The same of DeepSeek's form, where rounding sends a token to other experts now and then. Measured: at most 4.6e-3; where every expert is
chosen, 7.9e-4."""

NATIVE_STATES = 4e-2
"""The same for tiny models with delta rules and experts: see QUANTISED_STATES; the operations over states are compared by themselves, to
NATIVE_SCAN. Measured: 2.0e-2 with experts, 1e-3 without."""

NATIVE_SCAN = 1e-12
"""NMSE of native scans and convolutions over up to 150 rows in float32, against their formulas in float64. Measured: at most 5e-14."""

NATIVE_TIE = 0.2
"""How far behind the best logit of numpy a greedy token of the native interpreter may lie, in standard deviations of the logits of a
tiny random model. Its layers are 32 wide, so rounding to 8 bits shows more than in any real model. Measured: at most 0.095."""

NATIVE_GAP = 0.2
"""Gap between the reference's two best logits below which the native interpreter, which rounds inputs of products to 8 bits, may rightly
choose the other token. Measured: at most 0.1."""

BFLOAT16_GAP = 0.12
"""How far behind torch's best logit, in float32 arithmetic, a greedy token of the native interpreter may lie, weights in bfloat16.
Measured: at most 0.079 (SmolLM2-135M) and 0.073 (Qwen2.5-Coder-0.5B), of 20 texts of 48 tokens each."""

NATIVE_PERPLEXITY = 0.01
"""Relative difference of perplexity between the native interpreter and numpy on the same weights. Measured: 0.1 % (SmolLM2-135M) and
0.65 % (Qwen2.5-Coder-0.5B), on 200 tokens."""

INT8_CACHE_PERPLEXITY = 0.01
"""Relative difference of perplexity between a cache in 8 bits and one in bfloat16, on 200 and 300 tokens. Measured: 0.4 to 0.8 %, of either
sign, like that of bfloat16 itself; 1.6 % for Qwen2.5-Coder-0.5B when large inputs of keys have no steps of their own."""

SCAN_BFLOAT16 = 2e-5
"""NMSE of a scan over a state of up to 150 rows whose inputs and result are in bfloat16. The state is not; decays and shares are rounded on
their way. Measured: at most 1.2e-5."""
