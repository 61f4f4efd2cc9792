from multiprocessing import Pool

from shmrhash import RHashMap


def visit(hits):
    for _ in range(10_000):
        hits.add(b"visitors", 1, initial=0)


if __name__ == "__main__":
    with RHashMap.create("hits", key_size=8, value_size=8, max_entries=1000) as hits:
        with Pool(4) as pool:
            pool.map(visit, [hits] * 4)
        print(int.from_bytes(hits[b"visitors"], "little"))  # 40000
        hits.unlink()
