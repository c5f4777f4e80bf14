"""What a deployment is put through by ``campaigns faults``, and how it is seen that nothing is lost."""
