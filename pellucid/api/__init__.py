"""Text in, text out over engine and tokenizer: `load` and the Model it returns."""
from pellucid.api.completion import Completion, Usage
from pellucid.api.loading import load
from pellucid.api.model import Model
from pellucid.api.stream import Stream

__all__ = ["Completion", "Model", "Stream", "Usage", "load"]
