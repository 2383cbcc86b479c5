from dataclasses import fields
from pathlib import Path

import pytest

from cdm_serve.configuration import load_settings
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings


def test_defaults_are_those_of_the_settings():
    assert load_settings([], {"PATH": "/bin"}) == Settings()


def test_flags():
    line = "--host ::1 --port 9 --triton a:1 --triton-log x --open --model-repository y "
    settings = load_settings((line + "--drain-seconds 2.5 --log json").split(), {})
    assert (settings.host, settings.port, settings.triton) == ("::1", 9, "a:1")
    assert (settings.triton_log, settings.model_repository) == (Path("x"), Path("y"))
    assert (settings.open, settings.drain_seconds, settings.log) == (True, 2.5, "json")


def test_every_setting_can_come_from_the_environment_and_from_the_file(tmp_path):
    values = {
        str: ("text", "text"),
        int: (3, 3),
        float: (2.5, 2.5),
        bool: (True, True),
        Path: ("a/b", Path("a/b")),
    }
    wanted = {}
    for setting in fields(Settings):
        default = setting.default
        kind = Path if setting.name.endswith(("file", "log")) and default is None else type(default)
        if setting.name == "log":
            wanted[setting.name] = ("json", "json")
        elif setting.name.endswith("per_minute"):
            wanted[setting.name] = values[int]
        else:
            wanted[setting.name] = values.get(kind, values.get(type(default), values[str]))
    wanted["model_repository"] = values[Path]
    environment = {f"CDM_SERVE_{name.upper()}": str(raw) for name, (raw, _) in wanted.items()}
    expected = Settings(**{name: value for name, (_, value) in wanted.items()})
    assert load_settings([], environment) == expected
    literal = {True: "true"}
    (tmp_path / "serve.toml").write_text(
        "\n".join(
            f"{name} = {literal.get(raw, raw) if not isinstance(raw, str) else repr(raw)}"
            for name, (raw, _) in wanted.items()
        )
    )
    assert load_settings(["--config", str(tmp_path / "serve.toml")], {}) == expected


def test_flag_before_environment_before_file_before_default(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nhost = '::1'\nbody_limit = 3\ndrain_seconds = 5")
    environment = {"CDM_SERVE_CONFIG": str(file), "CDM_SERVE_PORT": "2", "CDM_SERVE_HOST": "::2"}
    settings = load_settings(["--port", "4"], environment)
    assert (settings.port, settings.host, settings.body_limit) == (4, "::2", 3)
    assert (settings.drain_seconds, settings.prompt_limit) == (5.0, Settings.prompt_limit)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port = 'x'", "port is 'x': expected a whole number"),
        ("port = true", "port is True: expected a whole number"),
        ("port = 1.5", "port is 1.5: expected a whole number"),
        ("open = 1", "open is 1: expected true or false"),
        ("log = 'xml'", "log is 'xml': expected text or json"),
        ("prot = 1", "prot is no setting"),
        ("requests_per_minute = 0", "requests_per_minute is 0: it must be more than 0"),
        ("drain_seconds = -1", "drain_seconds is -1.0: it must be more than 0"),
        ("port 1", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, complaint):
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(StartError) as caught:
        load_settings(["--config", str(tmp_path / "serve.toml")], {})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["CDM_SERVE_PROT", "CDM_SERVE_OPEN"])
def test_a_wrong_variable_is_named(variable):
    with pytest.raises(StartError, match=variable):
        load_settings([], {variable: "maybe"})


def test_keys_are_not_printed():
    settings = load_settings([], {"CDM_SERVE_API_KEYS": "0123456789abcdef"})
    assert settings.api_keys == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings)
