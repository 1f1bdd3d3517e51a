import dataclasses


@dataclasses.dataclass(frozen=True)
class SentenceEncoding:
    pooling: str = "mean"
    normalize: bool = True
    sequence_length: int | None = None


def read_sentence_encoding(path):
    return SentenceEncoding() if (path / "modules.json").exists() else None
