"""`schema`: the JSON schema of study files, for editors."""


def command() -> None:
    """Print the JSON schema of study files, by which editors complete and check them.

    A study names it in its first line: # yaml-language-server: $schema=../docs/study.schema.json

    Example: kdr schema > docs/study.schema.json
    """
    import json

    from kdr.config.schema import study_schema

    print(json.dumps(study_schema(), indent=1))
