"""Sample logs as lm-evaluation-harness writes them, made by hand."""

import json


def line(doc_id, log_probs, target, options=("no", "yes"), contexts=None, **fields):
    """An item of multiple choice; numbers are text, as `--log_samples` makes them."""
    contexts = contexts or ["Is it?"] * len(log_probs)
    pairs = zip(contexts, [f" {option}" for option in options], strict=True)
    predicted = max(range(len(options)), key=log_probs.__getitem__)
    return {
        "doc_id": doc_id,
        "doc": {"question": "Is it?"},
        "target": str(target),
        "arguments": {f"gen_args_{n}": {"arg_0": context, "arg_1": text} for n, (context, text) in enumerate(pairs)},
        "resps": [[[str(each), "False"]] for each in log_probs],
        "filtered_resps": [[str(each), "False"] for each in log_probs],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"hash {doc_id}",
        "acc": float(target in (predicted, options[predicted])),
    } | fields


def write_samples(path, lines):
    """A file of them."""
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path
