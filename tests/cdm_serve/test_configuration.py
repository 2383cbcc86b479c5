import json
from pathlib import Path
from typing import get_args

import pytest

from cdm_serve.configuration import load_settings
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings


def test_flags():
    line = "--host ::1 --port 9 --triton a:1 --triton-log x --open --model-repository y "
    settings = load_settings((line + "--drain-seconds 2.5 --log json").split())
    assert (settings.host, settings.port, settings.triton) == ("::1", 9, "a:1")
    assert (settings.triton_log, settings.model_repository) == (Path("x"), Path("y"))
    assert (settings.open, settings.drain_seconds, settings.log) == (True, 2.5, "json")


def test_a_list_is_given_with_commas_or_flag_by_flag(tmp_path):
    settings = load_settings(["--alias", "a=b, *=c", "--alias", "d=b", "--allowed-host", "x,y"])
    assert settings.alias == {"a": "b", "*": "c", "d": "b"}
    assert settings.allowed_host == ("x", "y")
    (tmp_path / "toml").write_text('alias = {"*" = "c"}\nallowed_host = ["x", "y"]')
    settings = load_settings(["--config", str(tmp_path / "toml")])
    assert (settings.alias, settings.allowed_host) == ({"*": "c"}, ("x", "y"))
    with pytest.raises(StartError, match="it must be NAME=MODEL"):
        load_settings(["--alias", "a"])


def test_every_setting_can_come_from_the_environment_and_from_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("CDM_SERVE_WARM_UP_SECONDS", raising=False)
    examples = {str: "text", int: 3, float: 2.5, bool: True, Path: "a/b"}
    words = {"alias": "name=model", "trusted_proxy": "10.0.0.0/8", "root_path": "/a/b"}
    words |= {"response_format": "url", "moderation": "http://localhost/"}
    wanted = {}
    for name, field in Settings.model_fields.items():
        kinds = [
            kind for kind in (field.annotation, *get_args(field.annotation)) if kind in examples
        ]
        # Of a choice, the last.
        wanted[name] = words.get(name) or (
            examples[kinds[0]] if kinds else get_args(field.annotation)[-1]
        )
    del wanted["config"]
    expected = Settings(**wanted)
    assert all(getattr(expected, name) != getattr(Settings(), name) for name in wanted)
    lines = [f"{name} = {json.dumps(value)}" for name, value in wanted.items()]
    file = tmp_path / "serve.toml"
    file.write_text("\n".join(lines))
    loaded = load_settings(["--config", str(file)])
    assert loaded == expected.model_copy(update={"config": file})
    for name, value in wanted.items():
        monkeypatch.setenv(f"CDM_SERVE_{name.upper()}", str(value))
    assert load_settings([]) == expected


def test_flag_before_environment_before_file_before_default(tmp_path, monkeypatch):
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nhost = '::1'\nbody_limit = 3\ndrain_seconds = 5")
    for name, value in {"CONFIG": str(file), "PORT": "2", "HOST": "::2"}.items():
        monkeypatch.setenv(f"CDM_SERVE_{name}", value)
    settings = load_settings(["--port", "4"])
    assert (settings.port, settings.host, settings.body_limit) == (4, "::2", 3)
    assert (settings.drain_seconds, settings.prompt_limit) == (5.0, 4000)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port = 'x'", ": port is 'x': it must be a valid integer"),
        ("port = true", ": port is True: it must be a number or text"),
        ("port = 1.5", ": port is 1.5: it must be a valid integer"),
        ("open = 'maybe'", ": open is 'maybe': it must be a valid boolean"),
        ("log = 'xml'", ": log is 'xml': it must be 'text' or 'json'"),
        ("prot = 1", ": prot is no setting"),
        ("requests_per_minute = 0", ": requests_per_minute is 0: it must be greater than 0"),
        ("drain_seconds = -1", ": drain_seconds is -1: it must be greater than 0"),
        ("port 1", " is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, complaint):
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(StartError) as caught:
        load_settings(["--config", str(tmp_path / "serve.toml")])
    assert f"serve.toml{complaint}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StartError, match=r"cannot read the settings .*none: No such file"):
        load_settings(["--config", str(tmp_path / "none")])


@pytest.mark.parametrize("variable", ["CDM_SERVE_PROT", "CDM_SERVE_OPEN"])
def test_a_wrong_variable_is_named(variable, monkeypatch):
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(StartError, match=f"^{variable} is"):
        load_settings([])


def test_what_is_given_in_code_holds_like_a_flag(monkeypatch):
    """As Ray gives the arguments of an application."""
    monkeypatch.setenv("CDM_SERVE_ENGINES", "2")
    assert load_settings([], engines="3", engine_gpus=1).engines == 3
    with pytest.raises(StartError, match="--enginse is no setting"):
        load_settings([], enginse=3)


def test_keys_are_not_printed(monkeypatch):
    monkeypatch.setenv("CDM_SERVE_API_KEYS", "0123456789abcdef")
    settings = load_settings([])
    assert settings.api_keys == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings)


def test_the_home_folder_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "serve.toml").write_text('model_repository = "~/models"')
    settings = load_settings(["--config", str(tmp_path / "serve.toml")])
    assert settings.model_repository == tmp_path / "models"
