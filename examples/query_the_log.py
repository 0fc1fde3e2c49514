"""Asks the trial log questions: Arrow tables, SQL, and a table to put into a paper.

Usage: python examples/query_the_log.py quickstart --output table.tex
"""

import argparse

import kdr


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="the name of a study in the log")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--output", help="write the table to .md, .tex, .csv, .json or .html")
    options = parser.parse_args()

    log = kdr.open_log(options.storage)
    print(f"studies: {', '.join(log.studies())}")

    # a pyarrow.Table: one row per trial, every setting a column; .to_pandas() if you like
    trials = log.trials(options.study)
    print(trials.select(["key", "state", "epoch", "AP", "distill.kdr.weight"]))

    # SQL over all studies: which states, how often, how long
    answer = log.query(
        """
        SELECT state, count(*) AS trials, round(sum(seconds)) AS seconds
        FROM trials WHERE role = 'student' GROUP BY state ORDER BY trials DESC
        """
    )
    for row in answer.to_pylist():
        print(f"{row['state']}: {row['trials']} trials, {row['seconds']} s")

    table = kdr.make_table(log, options.study)
    print(table)
    if options.output:
        table.save(options.output)
        print(f"written; check it with: kdr verify {options.output}")


if __name__ == "__main__":
    main()
