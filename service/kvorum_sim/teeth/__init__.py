"""
Teeth: known bugs, put into the running product one at a time, to see whether the harness notices.

A harness that has never failed proves nothing. `bugs` is the list, from the catalogue of classical Raft bugs; `layers`
are the ways to notice one; `campaign` is ``make teeth``. Nothing of this is imported by anything else.
"""
