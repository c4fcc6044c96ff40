"""The command line: `prunus run`, `scan`, `measure`, `export`, `report`, `init`."""

try:
    from prunus.cli.app import app, main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("typer", "rich"):
        raise
    raise SystemExit(f"The prunus command needs {error.name}: pip install 'prunus[cli]'.") from None

__all__ = ["app", "main"]
