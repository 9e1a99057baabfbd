def peer_cases(bench):
    return []
