"""``python -m simulations.benchmarks NAME`` runs a benchmark, ``--list`` says what there is."""

import argparse
import importlib

BENCHMARKS = {
    "memory": "peak memory of the aggregator with 2 to 64 clients, beside Flower's FedAvg",
    "average": "the plain mean of ten clients against Flower's FedAvg, and what bad replies do",
    "product": "the best adapter for a mean of products, against dense SVD and bare arithmetic",
    "private_step": "a private step against a plain one, and against Opacus's hooks",
    "training_step": "a step of local training against TRL's trainer and against a loop by hand",
    "length_groups": "tokens per second with rows of like length together, against as they come",
    "rounds": "federated rounds against the bare training steps, and against the plain way",
    "wire": "bytes that a client sends in a round, against Flower's float32 factors",
    "deployment_round": "a deployed round beside training, against stock Flower",
    "download": "pulling an adapter from a registry, beside a plain gRPC stream and plain HTTP",
    "secure_sum": "an attempt at a secure sum, against Flower's SecAgg+ and against no masks",
    "secure_cohorts": "secure sums of 125 to 1,000 clients: what one costs, by their number",
    "evidence": "what a signed log of each answer costs, beside encoding the answer alone",
}


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks")
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="what to measure")
    parser.add_argument("--list", action="store_true", help="say what each benchmark measures")
    parser.add_argument("-n", type=int, default=5, help="repetitions of each variant (default 5)")
    arguments = parser.parse_args()
    if arguments.list or not arguments.name:
        for name, subject in BENCHMARKS.items():
            print(f"{name:17} {subject}")
        return
    importlib.import_module(f"simulations.benchmarks.{arguments.name}").run(arguments.n)


if __name__ == "__main__":
    main()
