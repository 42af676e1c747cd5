"""What search_net.py does, as a room that no other one imports.

plan.py checks all of it before anything is written, run.py runs the phases in order. phases.py: the
supernets' trainings and searches; search_hook.py and scorer.py: a search at the end of a training, and
what it scores with. contest.py: finalists and verdict; trainings.py: networks trained alone, each once;
table.py and testing.py: what they and paths of a supernet give on the test set. training.py: one
training, with pre-training. configs.py: derived configs; found.py: found.yaml and found.pth.
"""
