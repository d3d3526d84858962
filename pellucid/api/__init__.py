"""Text in, text out over engine and tokenizer: `load` and the Model it returns."""
from pellucid.api.completion import Completion, Usage
from pellucid.api.model import Model, load
from pellucid.api.stream import Stream

__all__ = ["Completion", "Model", "Stream", "Usage", "load"]
