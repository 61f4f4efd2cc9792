from multiprocessing import Pool

from shmrhash import SharedDict


def look_up(d, word):
    return d.setdefault(word, {"length": len(word), "vowels": sum(c in "aeiou" for c in word)})


if __name__ == "__main__":
    with SharedDict(key=str, value=object, ttl=3600) as d, Pool(4) as pool:
        pool.starmap(look_up, [(d, word) for word in ["to", "be", "or", "not", "to", "be"]])
        d.update_with("be", lambda value: value | {"verb": True})
        print(len(d), d["be"])  # 4 {'length': 2, 'vowels': 1, 'verb': True}
