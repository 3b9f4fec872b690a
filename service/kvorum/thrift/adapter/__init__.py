"""
Requests judged and turned into operations, outcomes turned into replies.

`edge` is what every call can reach, `call` the life of one request, `methods` the table of all of them. `validation`
holds the checks of contract section 3.1; `points`, `writes`, `commits`, `ranges` and `local` hold the methods.
"""
