"""What the model can do, in Ollama's words.

"tools" and "thinking" are there where the chat template's own formats are known; tools work with any other model
too, described in a system message, but such a model was not trained for them. "embedding" marks models that can do
nothing else, as in Ollama, where clients leave those out of their lists for chat; /api/embed works with any other
model too. A classifier has none: Ollama has no word for it. "insert" would need prompts for filling in the middle.
"""

from jserve.api.model.served_model import ServedModel


def capabilities(model: ServedModel) -> list[str]:
    """Ollama's names, "completion" first."""
    if model.embedder is not None:
        return ["embedding"]
    if model.classifier is not None:
        return []
    speech = model.speech()
    names = ["completion"]
    if speech.is_known:
        names.append("tools")
    if speech.reasons:
        names.append("thinking")
    return names
