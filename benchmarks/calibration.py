"""Times calibration against other libraries, and checks the accuracy of its statistics by simulation.

python -m benchmarks.calibration

Prints, for 10^6 items of 10 classes and 2 * 10^5 of 1,000, the time of ECE (15 bins, from logits) and of a
temperature fit, ours and others', alternating in one process; the value each returned; and the ratio of the fastest
correct one to ours. A value is correct within 1e-3 relative of float64. Then the size of the noise floor's test and the
coverage of the intervals on synthetic models whose true error is known. Needs the extra `reference`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

SIZES = ((1_000_000, 10), (200_000, 1000))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns of each implementation (default: 5)")
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help="which sizes (default: all)")
    parser.add_argument("--replications", type=int, default=400, help="of the statistics (default: 400; 0: none)")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        items, classes = SIZES[size]
        logits, labels = sample(items, classes)
        print(f"\n{items:,} items, {classes:,} classes", flush=True)
        compare("ECE", ece_of(logits, labels), arguments.turns)
        compare("temperature", temperature_of(logits, labels, quick=classes > 100), arguments.turns)
    if arguments.replications:
        print_statistics(arguments.replications)


def sample(items: int, classes: int, temperature: float = 1.8) -> tuple[np.ndarray, np.ndarray]:
    """Over-confident float32 logits: labels are drawn from the softmax of logits / temperature."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((items, classes), np.float32) * np.float32(2 * temperature)
    # The Gumbel-max trick, in chunks.
    labels = [
        (part / temperature + rng.gumbel(size=part.shape)).argmax(axis=1)
        for part in np.array_split(logits, max(1, items * classes // 10**7))
    ]
    return logits, np.concatenate(labels).astype(np.int32)


def compare(what: str, implementations: dict[str, Callable[[], float]], turns: int) -> None:
    """Times all alternately and prints a line for each; the first is ours, the last the float64 reference (untimed)."""
    *timed, reference_name = implementations
    reference = implementations[reference_name]()
    values = {name: implementations[name]() for name in timed}  # compiles, too
    times = {name: [] for name in timed}
    for _ in range(turns):
        for name in timed:
            began = time.perf_counter()
            implementations[name]()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    correct = {name: abs(values[name] / reference - 1) < 1e-3 for name in timed}
    for name in timed:
        note = "" if correct[name] else f"  WRONG (float64: {reference:.6g})"
        print(f"  {what:12} {name:34} {medians[name]:8.3f} s  {values[name]:.6g}{note}", flush=True)
    rivals = [name for name in timed[1:] if correct[name]]
    if rivals:
        best = min(rivals, key=medians.get)
        logs = np.log(times[best]) - np.log(times[timed[0]])
        ratio, error = np.exp(logs.mean()), 1.96 * logs.std(ddof=1) / np.sqrt(turns)
        print(
            f"  {what:12} fastest correct rival ({best}) / ours: {ratio:.1f} (95%: {ratio * np.exp(-error):.1f} to "
            f"{ratio * np.exp(error):.1f})",
            flush=True,
        )


def ece_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    """Implementations of ECE with 15 equal-width bins, each with its own kind of array."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    from lm.calibration.errors import expected_calibration_error

    logits_jax, labels_jax = jnp.asarray(logits), jnp.asarray(labels)
    logits_torch, labels_torch = torch.from_numpy(logits), torch.from_numpy(labels).long()
    # Some libraries treat values in [0, 1] as probabilities; these logits exceed that range.
    classes = logits.shape[1]

    def torchmetrics() -> float:
        return float(multiclass_calibration_error(logits_torch, labels_torch, classes, n_bins=15, validate_args=False))

    def by_numpy() -> float:
        shifted = logits - logits.max(axis=1, keepdims=True)
        confidence = 1 / np.exp(shifted).sum(axis=1)
        correct = logits.argmax(axis=1) == labels
        bins = np.clip(np.ceil(confidence * np.float32(15)) - 1, 0, 14).astype(int)
        return float(np.abs(np.bincount(bins, correct - confidence.astype(np.float64), 15)).sum() / len(labels))

    def probmetrics() -> float:
        from probmetrics.metrics import Metrics

        return float(
            Metrics.from_names(["ece-15"]).compute_all_from_labels_logits(labels_torch, logits_torch)["ece-15"]
        )

    def reference() -> float:
        total = np.zeros(15)
        for part, of_part in zip(np.array_split(logits, 50), np.array_split(labels, 50), strict=True):
            confidence = special.softmax(part.astype(np.float64), axis=1).max(axis=1)
            bins = np.clip(np.ceil(confidence * 15) - 1, 0, 14).astype(int)
            total += np.bincount(bins, (part.argmax(axis=1) == of_part) - confidence, 15)
        return float(np.abs(total).sum() / len(labels))

    return {
        "ours": lambda: float(expected_calibration_error(labels_jax, logits=logits_jax)),
        "numpy": by_numpy,
        "torchmetrics": torchmetrics,
        "probmetrics": probmetrics,
        "float64": reference,
    }


def temperature_of(logits: np.ndarray, labels: np.ndarray, *, quick: bool) -> dict[str, Callable[[], float]]:
    """Implementations of the fit; `quick` leaves out those that take a minute."""
    import torch
    from scipy import optimize

    from lm.calibration.temperature import fit_temperature

    logits_jax, labels_jax = jnp.asarray(logits), jnp.asarray(labels)
    logits_torch, labels_torch = torch.from_numpy(logits), torch.from_numpy(labels).long()

    def lbfgs() -> float:
        temperature = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.LBFGS([temperature], lr=1.0, max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(logits_torch / temperature, labels_torch)
            loss.backward()
            return loss

        optimizer.step(closure)
        return float(temperature.detach())

    def sklearn() -> float:
        from sklearn.calibration import _TemperatureScaling

        return float(1 / _TemperatureScaling().fit(logits, labels).beta_)

    def probmetrics() -> float:
        from probmetrics.calibrators import TemperatureScalingCalibrator
        from probmetrics.distributions import CategoricalLogits

        calibrator = TemperatureScalingCalibrator(opt="bisection", max_bisection_steps=30)
        calibrator.fit_torch(CategoricalLogits(logits_torch), labels_torch)
        return float(1 / calibrator.invtemp_)

    def reference() -> float:
        parts = list(zip(np.array_split(logits, 50), np.array_split(labels, 50), strict=True))

        def loss(log_temperature: float) -> float:
            total = 0.0
            for part, of_part in parts:
                scaled = part.astype(np.float64) / np.exp(log_temperature)
                total += (special.logsumexp(scaled, axis=1) - scaled[np.arange(len(of_part)), of_part]).sum()
            return total

        found = optimize.minimize_scalar(loss, bounds=(0, 1.5), method="bounded", options={"xatol": 1e-5})
        return float(np.exp(found.x))

    found = {"ours": lambda: float(jax.block_until_ready(fit_temperature(logits_jax, labels_jax)).temperature)}
    found["torch L-BFGS, strong Wolfe"] = lbfgs
    if not quick:
        found |= {"scikit-learn": sklearn, "probmetrics": probmetrics}
    return {**found, "float64": reference}


def print_statistics(replications: int) -> None:
    """Rejection rate of the floor's test at 5%, and coverage of the 95% interval, over synthetic models."""
    from lm.calibration.binning import Binning, bin_totals
    from lm.calibration.errors import ece
    from lm.calibration.noise_floor import bin_features, ece_interval, floor_of, null_totals, totals_of_sums
    from lm.statistics.resampling import Resampler

    truths = {
        "calibrated": lambda c: c,
        "over-confident by 0.08": lambda c: np.clip(c - 0.08, 0, 1),
        "wavy": lambda c: np.clip(c + 0.06 * np.sin(12 * c), 0, 1),
    }
    print(f"\n95% intervals of ECE-15 and the test of calibration at 5%, {replications} replications of each")
    print(f"  {'truth':24} {'items':>6} {'true error':>10} {'rejected':>9} {'covered':>8}")
    binning = Binning(15)
    for name, accuracy_of in truths.items():
        for items in (300, 1000, 5000):
            rng = np.random.default_rng(0)
            grid = rng.beta(4, 2, 10**6)
            true_error = float(np.abs(accuracy_of(grid) - grid).mean())
            rejected, covered = [], []
            for seed in range(replications):
                confidence = rng.beta(4, 2, items).astype(np.float32)
                correct = (rng.uniform(size=items) < accuracy_of(confidence)).astype(np.float32)
                totals = bin_totals(confidence, correct, binning)
                observed = float(ece(totals))
                null = null_totals(confidence, correct, binning, resamples=400, rng=np.random.default_rng(seed))
                floor = floor_of(observed, ece(null))
                resampler = Resampler(items, resamples=400, seed=seed)
                sums = resampler.sums(bin_features(confidence, correct, binning))
                interval = ece_interval(totals, totals_of_sums(sums))
                rejected.append(floor.p <= 0.05)
                covered.append(interval.low <= true_error <= interval.high)
            error = np.sqrt(np.mean(covered) * (1 - np.mean(covered)) / replications)
            shares = f"{np.mean(rejected):9.1%} {np.mean(covered):8.1%} ± {error:.1%}"
            print(f"  {name:24} {items:6,} {true_error:10.4f} {shares}", flush=True)


if __name__ == "__main__":
    main()
