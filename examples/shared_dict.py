from multiprocessing import Pool

from shmrhash import SharedDict


def look_up(words, word):
    return words.setdefault(word, {"length": len(word), "vowels": sum(map(word.count, "aeiou"))})


if __name__ == "__main__":
    with SharedDict(key=str, value=object, ttl=3600) as words, Pool(4) as pool:
        pool.starmap(look_up, [(words, word) for word in ["to", "be", "or", "not", "to", "be"]])
        print(len(words), words["be"])  # 4 {'length': 2, 'vowels': 1}
