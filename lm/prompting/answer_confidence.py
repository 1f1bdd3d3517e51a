"""How sure a model is of a whole answer, from the answer and from samples of others that it might have given.

Samples that took part in the choice of an answer agree with it for that reason, so they never judge it.

Axes: K samples that judge, A texts, D width of a vector.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from lm.errors import UserError
from lm.evaluation.spans import normalize_answer


@dataclasses.dataclass(frozen=True)
class WrittenAnswer:
    """What a model wrote.

    Attributes:
      text: of the answer.
      log_probs: the model's own log-probability of each token, the one that ends the answer included, in nats.
    """

    text: str
    log_probs: tuple[float, ...]

    @property
    def total_log_prob(self) -> float:
        """Of the whole answer."""
        return min(math.fsum(self.log_probs), 0.0)  # rounding may bring it above

    @property
    def mean_log_prob(self) -> float:
        """Per token; that of an answer without tokens is 0."""
        return self.total_log_prob / max(len(self.log_probs), 1)


@dataclasses.dataclass(frozen=True)
class ChosenAnswer:
    """An answer, and the samples that judge it.

    Attributes:
      answer: that was chosen.
      judges: samples without part in the choice.
    """

    answer: WrittenAnswer
    judges: tuple[WrittenAnswer, ...]

    def __post_init__(self):
        if not self.judges:
            raise UserError("no sample is left to judge the answer: draw more")


def choose_greedy(greedy: WrittenAnswer, samples: Sequence[WrittenAnswer]) -> ChosenAnswer:
    """The greedy answer, judged by all samples.

    Raises:
      UserError: without samples.
    """
    return ChosenAnswer(greedy, tuple(samples))


def choose_majority(samples: Sequence[WrittenAnswer]) -> ChosenAnswer:
    """The answer that most of the first half of the samples give (Wang et al. 2023), judged by the second half.

    Answers are the same if they are equal after `normalize_answer`. Among equally frequent ones, and spellings of one,
    the most probable is chosen.

    Raises:
      UserError: for an odd number of samples, or none.
    """
    if len(samples) % 2:
        raise UserError(f"half of the samples choose and half judge, but there are {len(samples)}: draw an even number")
    voters, judges = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    votes = collections.Counter(normalize_answer(voter.text) for voter in voters)
    best = max(
        voters, key=lambda voter: (votes[normalize_answer(voter.text)], voter.total_log_prob, voter.text), default=None
    )
    if best is None:
        raise UserError("there are no samples to choose from: draw some")
    return ChosenAnswer(best, tuple(judges))


# Which of some texts mean the same, [A, A]; symmetric, with a true diagonal.
SameMeaning = Callable[[Sequence[str]], np.ndarray]


def same_text(texts: Sequence[str]) -> np.ndarray:
    """Texts that are equal after `normalize_answer`, [A, A]."""
    normal_A = np.array([normalize_answer(text) for text in texts])
    return normal_A[:, None] == normal_A


def same_vector(vectors_AD: np.ndarray, least_cosine: float) -> np.ndarray:
    """Vectors whose cosine is at least so much, [A, A]."""
    length_A1 = np.linalg.norm(vectors_AD, axis=1, keepdims=True)
    unit_AD = vectors_AD / np.where(length_A1 > 0, length_A1, 1)
    return (unit_AD @ unit_AD.T >= least_cosine) | np.eye(len(unit_AD), dtype=bool)


def same_by_entailment(
    texts: Sequence[str], entails: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
) -> np.ndarray:
    """Texts that entail each other (Kuhn et al. 2023, section 3), [A, A].

    Args:
      texts: A of them, such as a question with each of its answers.
      entails: whether the first text of each pair entails the second. It is called once, with pairs of different texts.
    """
    same_AA = np.array([[one == other for other in texts] for one in texts], bool)
    pairs = [(one, other) for one in dict.fromkeys(texts) for other in dict.fromkeys(texts) if one != other]
    found = dict(zip(pairs, entails(pairs), strict=True)) if pairs else {}
    for row, column in zip(*np.nonzero(~same_AA), strict=True):
        one, other = texts[row], texts[column]
        same_AA[row, column] = found[one, other] and found[other, one]
    return same_AA


@dataclasses.dataclass(frozen=True)
class Meanings:
    """Clusters of the samples that judge an answer.

    Attributes:
      cluster_K: the number of each sample's cluster.
      agrees_K: whether it is a cluster of the chosen answer.
    """

    cluster_K: np.ndarray
    agrees_K: np.ndarray


def meanings(chosen: ChosenAnswer, same: SameMeaning) -> Meanings:
    """Clusters of samples that mean the same, directly or through others, so that their order does not matter.

    The chosen answer is not among them and joins no clusters.
    """
    same_AA = same([chosen.answer.text, *(judge.text for judge in chosen.judges)])
    _, cluster_K = csgraph.connected_components(sparse.csr_array(same_AA[1:, 1:]), directed=False)
    return Meanings(cluster_K, np.isin(cluster_K, cluster_K[same_AA[0, 1:]]))


def probability_weights(judges: Sequence[WrittenAnswer]) -> np.ndarray:
    """How much each sample counts if texts count by their probability rather than by how often they were drawn, [K].

    Copies of a text share its weight. The weights sum to 1 (Farquhar et al. 2024).
    """
    copies = collections.Counter(judge.text for judge in judges)
    best = {text: max(judge.total_log_prob for judge in judges if judge.text == text) for text in copies}
    highest = max(best.values())
    weight_K = np.array([math.exp(best[judge.text] - highest) / copies[judge.text] for judge in judges])
    return weight_K / weight_K.sum()


def semantic_entropy(cluster_K: np.ndarray, weight_K: np.ndarray | None = None) -> float:
    """Entropy of the clusters' shares, in nats (Kuhn et al. 2023; Farquhar et al. 2024).

    Args:
      cluster_K: the number of each sample's cluster, from 0.
      weight_K: of each sample, such as `probability_weights`; None: all count the same, the discrete variant.
    """
    count_C = np.bincount(cluster_K, weight_K)
    share_C = count_C[count_C > 0] / count_C.sum()
    return max(float(-(share_C * np.log(share_C)).sum()), 0.0)


def share_of_samples(agrees_K: np.ndarray) -> float:
    """The share of samples that agree, with half a sample added to each side (Krichevsky & Trofimov 1981).

    K samples cannot show a probability of 0 or 1.
    """
    return float((np.count_nonzero(agrees_K) + 0.5) / (len(agrees_K) + 1))


def within_reach(share: float, samples: int) -> float:
    """The share, kept within what `share_of_samples` can give."""
    least = 0.5 / (samples + 1)
    return min(max(share, least), 1 - least)


_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%|percent)?\.?", re.IGNORECASE)
_ROUNDING = 0.005  # half a percent: what a stated percentage leaves open


def stated_confidence(text: str) -> float | None:
    """The confidence that a text states in answer to a request for a percentage, in [0.005, 0.995].

    Strict: the first line must be a percentage ("90%", "90 percent", "90") or a decimal fraction ("0.9"), and nothing
    else. None otherwise, also for "1", which may be either.
    """
    lines = text.strip().splitlines()
    match = _NUMBER.fullmatch(lines[0].strip()) if lines else None
    if match is None or (match[1] == "1" and not match[2]):
        return None
    number = float(match[1])
    is_fraction = "." in match[1] and number <= 1 and not match[2]
    share = number if is_fraction else number / 100
    return min(max(share, _ROUNDING), 1 - _ROUNDING) if share <= 1 else None


def p_true(log_prob_true: float, log_prob_false: float) -> float:
    """P(True): the log-probability of "True" among both (Kadavath et al. 2022), in nats."""
    return log_prob_true - float(np.logaddexp(log_prob_true, log_prob_false))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of confidence.

    Attributes:
      label: in tables.
      cost: of one answer, besides writing it.
      source: the paper.
    """

    label: str
    cost: str
    source: str


KINDS: Mapping[str, Kind] = {
    "sequence_probability": Kind("Probability of the answer", "nothing", ""),
    "token_probability": Kind("Probability per token", "nothing", "Malinin & Gales 2021"),
    "agreement": Kind("Agreement, same words", "K samples", "Wang et al. 2023"),
    "semantic_agreement": Kind("Agreement, same meaning", "K samples, their embeddings", "Farquhar et al. 2024"),
    "semantic_probability": Kind("The same, by probability", "K samples, their embeddings", "Kuhn et al. 2023"),
    "semantic_entropy": Kind("1 - semantic entropy / log K", "K samples, their embeddings", "Kuhn et al. 2023"),
    "p_true": Kind("P(True)", "a prompt to read", "Kadavath et al. 2022"),
    "stated": Kind("Stated", "a prompt to read, a few tokens to write", "Lin et al. 2022; Tian et al. 2023"),
}


def of_writing(answer: WrittenAnswer) -> dict[str, float]:
    """Log-probabilities that an answer is right, from those of its tokens: of all of them, and per token."""
    return {"sequence_probability": answer.total_log_prob, "token_probability": answer.mean_log_prob}


def of_samples(chosen: ChosenAnswer, same: SameMeaning | None) -> dict[str, float]:
    """Log-probabilities that an answer is right, from the samples that judge it.

    Args:
      chosen: with two judges or more: the entropy of one is always 0.
      same: which texts mean the same; None: nobody knows, and only the same words count.

    Raises:
      UserError: for a single judge.
    """
    samples = len(chosen.judges)
    if samples < 2:
        raise UserError("one sample has no entropy: let two or more judge")
    confidence = {"agreement": share_of_samples(meanings(chosen, same_text).agrees_K)}
    if same is not None:
        found, weight_K = meanings(chosen, same), probability_weights(chosen.judges)
        confidence |= {
            "semantic_agreement": share_of_samples(found.agrees_K),
            "semantic_probability": within_reach(float(weight_K[found.agrees_K].sum()), samples),
            "semantic_entropy": within_reach(1 - semantic_entropy(found.cluster_K) / math.log(samples), samples),
        }
    return {name: math.log(value) for name, value in confidence.items()}
