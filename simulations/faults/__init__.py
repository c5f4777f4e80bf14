"""What ``campaigns faults`` puts a deployment through, and how it sees that nothing is lost."""
