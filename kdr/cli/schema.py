"""`schema`: prints the JSON schema of study files, for editors."""


def command() -> None:
    """Print the JSON schema of study files, for editors.

    A study file refers to it in its first line: # yaml-language-server: $schema=study.schema.json

    Example: kdr schema > study.schema.json
    """
    import json

    from kdr.config.schema import study_schema

    print(json.dumps(study_schema(), indent=1))
