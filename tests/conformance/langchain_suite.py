"""The standard tests, told what khola's models can do; run by `run_langchain.py` in an environment of their own."""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestKhola(ChatModelIntegrationTests):
    """Text, tools, forms; no images, sound or files."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        """What is tested with."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """How it is made."""
        return {
            "model": os.environ["KHOLA_MODEL"], "base_url": os.environ["KHOLA_ADDRESS"], "api_key": "none", "temperature": 0, "seed": 1,
            "max_tokens": 300, "stream_usage": True,
        }  # fmt: skip

    @property
    def supports_json_mode(self) -> bool:
        """`response_format` of any JSON object."""
        return True

    @property
    def has_tool_choice(self) -> bool:
        """A call can be required."""
        return True

    @property
    def model_override_value(self) -> str:
        """The same model, named once more."""
        return os.environ["KHOLA_MODEL"]
