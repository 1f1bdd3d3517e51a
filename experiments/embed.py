"""Makes a vector of each text, with a sentence encoder or any other model.

python -m experiments.embed --workdir=hf:~/models/all-MiniLM-L6-v2 --text="A quiet film." > vectors.jsonl
python -m experiments.embed --workdir=runs/minilm --output=vectors.npz < texts.txt
python -m experiments.embed --workdir=runs/minilm --similarity --text="A quiet film." --text="A calm movie."

Texts come from --text or, one a line, from standard input. Without --output a JSON object with `text` and `embedding`
is printed for each; an .npz file holds `texts` and `vectors` [texts, width] in float32.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from rich.table import Table

from experiments.predict import lines_of_standard_input
from lm.command_line import run
from lm.console import Console
from lm.errors import UserError
from lm.files import check_writable, written_atomically
from lm.inference.load import load


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    flags.DEFINE_string(
        "workdir", None, "Directory of a run, or a published model: hf:DIRECTORY or gguf:FILE.", flag_values=values
    )
    flags.DEFINE_multi_string("text", [], "A text; may be given several times.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)
    flags.DEFINE_bool("truncate", False, "Use the beginning of texts that are too long.", flag_values=values)
    flags.DEFINE_bool("similarity", False, "Print the cosine similarity of each text with each.", flag_values=values)
    flags.DEFINE_string("output", None, "An .npz file for the vectors.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Embeds and writes."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run, or hf:DIRECTORY of a published model")
    output = None if values.output is None else checked_output(Path(values.output).expanduser())
    texts = list(values.text) or lines_of_standard_input()
    model = load(values.workdir, values.checkpoint)
    vectors_ND = model.embed(texts, truncate=values.truncate)
    if output is not None:
        with written_atomically(output) as temporary:
            np.savez(temporary, texts=np.array(texts), vectors=vectors_ND)
        Console(stderr=True).print(f"{len(texts):,} vectors of {vectors_ND.shape[1]} numbers are in {output}")
    if values.similarity:
        Console().print(similarities(vectors_ND))
    elif output is None:
        for text, vector_D in zip(texts, vectors_ND, strict=True):
            print(json.dumps({"text": text, "embedding": vector_D.tolist()}, ensure_ascii=False))


def checked_output(path: Path) -> Path:
    """The path of a file for vectors.

    Raises:
      UserError: if it is of another kind or cannot be written.
    """
    if path.suffix != ".npz":
        raise UserError(f"--output={path} must end in .npz")
    check_writable(path.parent, f"--output={path}")
    return path


def similarities(vectors_ND: np.ndarray) -> Table:
    """The cosine similarity of each text with each."""
    lengths_N1 = np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    cosines_NN = (vectors_ND / lengths_N1) @ (vectors_ND / lengths_N1).T
    table = Table(title="cosine similarity")
    for name in ("", *(str(number) for number in range(1, len(cosines_NN) + 1))):
        table.add_column(name, justify="right")
    for number, row in enumerate(cosines_NN, 1):
        table.add_row(str(number), *(f"{value:.3f}" for value in row))
    return table


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
