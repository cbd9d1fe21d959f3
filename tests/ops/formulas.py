"""The ops as loops over their published formulas in float64: slow, obvious, and written without looking at any interpreter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khola.ops.vocabulary import Routing

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array, eps: float, plus_one: bool = False) -> Array:
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-1]):
        mean = math.fsum(value * value for value in x[index]) / x.shape[-1]
        out[index] = x[index] / math.sqrt(mean + eps) * (weight + 1 if plus_one else weight)
    return out


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-1]):
        mean = math.fsum(x[index]) / x.shape[-1]
        variance = math.fsum((value - mean) ** 2 for value in x[index]) / x.shape[-1]
        out[index] = (x[index] - mean) / math.sqrt(variance + eps) * weight + (0 if bias is None else bias)
    return out


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    return np.einsum("tn,dn->td", x, weight) + (0 if bias is None else bias)


def rotate(x: Array, positions: NDArray[Any], frequencies: Array, factor: float) -> Array:
    """Each pair as a complex number, turned."""
    half = len(frequencies)
    out = x.copy()
    for row, position in enumerate(positions):
        for pair in range(half):
            angle = float(np.float32(position) * np.float32(frequencies[pair]))
            turn = factor * complex(math.cos(angle), math.sin(angle))
            turned = (x[row, :, pair] + 1j * x[row, :, pair + half]) * turn
            out[row, :, pair], out[row, :, pair + half] = turned.real, turned.imag
    return out


def attend(q: Array, k: Array, v: Array, scale: float, window: int | None) -> Array:
    """One sequence; the rows of q are its last ones."""
    rows, heads, _ = q.shape
    seen, key_heads, _ = k.shape
    out = np.zeros((rows, heads, v.shape[-1]))
    for row in range(rows):
        position = seen - rows + row
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(heads):
            key_head = head // (heads // key_heads)
            scores = np.array([scale * float(q[row, head] @ k[at, key_head]) for at in range(first, position + 1)])
            weights = np.exp(scores - scores.max())
            weights /= math.fsum(weights)
            out[row, head] = sum(weight * v[at, key_head] for weight, at in zip(weights, range(first, position + 1), strict=True))
    return out


def attend_latent(q: Array, turned: Array, latent: Array, key: Array, up: Array, scale: float) -> Array:
    """One sequence; the rows of q and turned are its last ones. Keys and values of every token and head are made first."""
    heads, plain = q.shape[1:]
    made = np.einsum("hgl,tl->thg", up.reshape(heads, -1, latent.shape[1]), latent)
    keys = np.concatenate([made[..., :plain], np.repeat(key[:, None], heads, axis=1)], axis=-1)
    return attend(np.concatenate([q, turned], axis=-1), keys, made[..., plain:], scale, None)


def sigmoid(x: Array) -> Array:
    return np.vectorize(lambda value: 1 / (1 + math.exp(-value)) if value > -700 else 0.0, otypes=[float])(x)


def silu_mul(gate: Array, up: Array) -> Array:
    return gate * sigmoid(gate) * up


def gelu(x: Array) -> Array:
    return np.vectorize(lambda value: 0.5 * value * math.erfc(-value / math.sqrt(2)), otypes=[float])(x)


def route(logits: Array, bias: Array | None, r: Routing) -> list[dict[int, float]]:
    """Share of each chosen expert, row by row."""
    found = []
    for row in logits:
        scores = np.exp(row - row.max()) / math.fsum(np.exp(row - row.max())) if r.score == "softmax" else sigmoid(row)
        worth = scores + (0 if bias is None else bias)
        size = len(row) // r.groups
        groups = sorted(range(r.groups), key=lambda g: sum(sorted(worth[g * size : (g + 1) * size])[-2:]))[-r.kept_groups :]
        allowed = [expert for expert in range(len(row)) if expert // size in groups]
        chosen = sorted(allowed, key=lambda expert: worth[expert])[-r.chosen :]
        whole = max(math.fsum(scores[chosen]), r.floor) if r.normalised else 1.0
        found.append({expert: float(r.scale * scores[expert] / whole) for expert in chosen})
    return found


def experts(x: Array, routes: list[dict[int, float]], gate: Array, up: Array, down: Array) -> Array:
    out = np.zeros_like(x)
    for row, shares in enumerate(routes):
        for expert, share in shares.items():
            out[row] += share * (down[expert] @ silu_mul(gate[expert] @ x[row], up[expert] @ x[row]))
    return out


def decay_scan(q: Array, k: Array, v: Array, decay: Array) -> Array:
    """One sequence, token by token."""
    out = np.zeros(v.shape)
    for head in range(q.shape[1]):
        state = np.zeros((q.shape[2], v.shape[2]))
        for row in range(len(q)):
            state = decay[head] * state + np.outer(k[row, head], v[row, head])
            out[row, head] = q[row, head] @ state
    return out


def delta_scan(q: Array, k: Array, v: Array, log_decay: Array, share: Array) -> Array:
    """One sequence, token by token."""
    out = np.zeros(v.shape)
    for head in range(v.shape[1]):
        state, key_head = np.zeros((q.shape[2], v.shape[2])), head // (v.shape[1] // q.shape[1])
        for row in range(len(q)):
            query, key = (x[row, key_head] / math.sqrt(math.fsum(x[row, key_head] ** 2) + 1e-6) for x in (q, k))
            state *= math.exp(log_decay[row, head])
            state += np.outer(key, share[row, head] * (v[row, head] - key @ state))
            out[row, head] = query @ state / math.sqrt(q.shape[2])
    return out


def log_decay(a: Array, rate: Array, bias: Array) -> Array:
    return np.vectorize(lambda x, r, b: -math.exp(r) * math.log1p(math.exp(x + b)), otypes=[float])(a, rate, bias)


def causal_conv(x: Array, weight: Array) -> Array:
    """One sequence."""
    out, taps = np.zeros(x.shape), weight.shape[-1]
    for row in range(len(x)):
        for back in range(min(taps, row + 1)):
            out[row] += x[row - back] * weight[:, 0, taps - 1 - back]
    return silu_mul(out, np.ones(x.shape))
