"""Logs as Inspect writes them, made by hand."""

import json
import math
import zipfile

HEADER = {
    "version": 2,
    "status": "success",
    "eval": {
        "created": "2026-11-01T00:00:00+00:00",
        "task": "arithmetic",
        "dataset": {"name": "arithmetic", "samples": 2},
        "model": "mockllm/model",
        "config": {},
    },
}


def token(text, probability, **others):
    """A token of an output, and the likeliest ones in its place."""
    top = [{"token": each, "logprob": math.log(p)} for each, p in {text: probability, **others}.items()]
    return {"token": text, "logprob": math.log(probability), "top_logprobs": top}


def sample(id_, answer="A", target="A", epoch=1, tokens=None, choices=("one", "two", "three"), **fields):
    """A sample whose model answered with a letter; `tokens` are the last ones of its output."""
    if tokens is None:
        others = {letter: 0.1 for letter in "ABC"[: len(choices)] if letter != answer}
        tokens = [token(f" {answer}", 0.7, **others)]
    content = [token("ANSWER", 1.0), token(":", 1.0), *tokens]
    value = "C" if answer == target else "I"
    made = {
        "id": id_,
        "epoch": epoch,
        "input": "Which one?",
        "choices": list(choices),
        "target": target,
        "output": {
            "model": "mockllm",
            "choices": [
                {
                    "message": {"role": "assistant", "content": f"ANSWER: {answer}"},
                    "stop_reason": "stop",
                    "logprobs": {"content": content},
                }
            ],
        },
        "scores": {"choice": {"value": value, "answer": answer}},
        "metadata": {},
    }
    return made | fields


def stated(id_, confidence, value="C", **fields):
    """A sample without logprobs, whose scorer found a stated confidence."""
    made = sample(id_, **fields)
    del made["output"]["choices"][0]["logprobs"]
    return made | {"scores": {"stated": {"value": value, "metadata": {"confidence": confidence}}}}


def write_log(path, samples, archive=zipfile, compression=zipfile.ZIP_DEFLATED):
    """An .eval or a .json file, by the suffix of the path."""
    if path.suffix == ".json":
        path.write_text(json.dumps(HEADER | {"samples": samples}))
        return path
    with archive.ZipFile(path, "w", compression) as file:
        file.writestr("_journal/start.json", json.dumps({"version": 2, "eval": HEADER["eval"], "plan": {}}))
        for each in samples:
            file.writestr(f"samples/{each['id']}_epoch_{each['epoch']}.json", json.dumps(each))
        file.writestr("header.json", json.dumps(HEADER))
    return path
