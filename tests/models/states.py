"""What the contract allows models that keep states by a delta rule, and the sizes of their tiny configurations."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.models.contract import Contract
from tests.tolerances import BFLOAT16_STATES, CACHED_STATES, NATIVE_STATES, QUANTISED_STATES

SMALL: dict[str, Any] = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}


class DeltaContract(Contract):
    """The contract with the tolerances of delta rules."""

    QUANTISED: ClassVar[dict[str, float]] = QUANTISED_STATES
    ROUNDING: ClassVar[float] = CACHED_STATES
    BFLOAT16: ClassVar[float] = BFLOAT16_STATES
    NATIVE: ClassVar[float] = NATIVE_STATES
