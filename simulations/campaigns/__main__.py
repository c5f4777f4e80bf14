"""``python -m simulations.campaigns NAME`` runs a campaign, ``--list`` says what there is."""

import argparse
import importlib

CAMPAIGNS = {
    "download": "readers, publishers and registries killed: pulls resume, nothing half is visible",
    "dropouts": "members lost or lying at any stage of a secure sum, and lying aggregators",
    "faults": "each fault that a deployment must survive, at random moments of a real one",
    "hostile": "what a hostile aggregator and a hostile trainer try, and what stops each",
    "tamper": "changes to files, manifests, signatures and indices on their way to a reader",
    "ledger": "kill -9 around the writes of two processes on one budget account",
}


def main() -> None:
    """Run the campaign that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations.campaigns")
    parser.add_argument("name", nargs="?", choices=CAMPAIGNS, help="what to try")
    parser.add_argument("--list", action="store_true", help="say what each campaign tries")
    parser.add_argument("--trials", type=int, default=200, help="how often (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default 0)")
    arguments = parser.parse_args()
    if arguments.list or not arguments.name:
        for name, subject in CAMPAIGNS.items():
            print(f"{name:10} {subject}")
        return
    campaign = importlib.import_module(f"simulations.campaigns.{arguments.name}")
    campaign.run(trials=arguments.trials, seed=arguments.seed)


if __name__ == "__main__":
    main()
