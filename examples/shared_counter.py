from multiprocessing import Pool

from shmrhash import SharedCounter


def visit(visits, page):
    for _ in range(10_000):
        visits.inc(page)


if __name__ == "__main__":
    with SharedCounter() as visits, Pool(4) as pool:
        pool.starmap(visit, [(visits, page) for page in ["home", "about", "home", "home"]])
        print(visits["home"], visits["about"])  # 30000 10000
