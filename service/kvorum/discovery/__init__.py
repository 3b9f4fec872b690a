"""
What the platform says of the cluster: who should be there, where they are found, and who tells the platform who leads.

Begin with `scaling`, the one decision about joining and leaving; `kubernetes_api` is the door to the API server.
"""
