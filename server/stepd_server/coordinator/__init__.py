"""The coordinator: runs, membership, and the one decision of every round.

Pure, and to be read first: vocabulary, events and actions, policy, decision, rounds, membership.
At the rim: store (files), fleet and driver (shards), run, runs, service (calls).
"""
