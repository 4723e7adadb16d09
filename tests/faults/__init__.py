"""
A soak under faults: real processes on a real server, a nemesis that breaks both, and a judge.

    python -m tests.faults --minutes 3 --seed 1

Workers, deferrers and an operator write down what they do in files outside of the database, a trigger writes down each
transition within it, and `checker` compares the two: nothing lost, nothing twice without a fault that explains it,
no outcome of a worker that had lost the job.
One seed chooses the faults, their order and the load; how the processes interleave is up to the machine.
"""
