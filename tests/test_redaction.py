"""What looks like a password or a token is not written down; what only sounds like one is."""

import pytest

from zae_engine.redaction import is_secret_name, redact, without_secrets

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--header", "Authorization: Bearer S3CRET"], ["--header", "Authorization: ***"]),
        (["-H", "Authorization:", "Bearer", "S3CRET", "--lr"], ["-H", "Authorization:", "***", "***", "--lr"]),
        (["--header=Authorization: Basic S3CRET=="], ["--header=Authorization: ***"]),
        (["-H", "X-Api-Key: S3CRET"], ["-H", "X-Api-Key: ***"]),
        (["-H", "Cookie: a=S3CRET; b=S3CRET"], ["-H", "Cookie: ***"]),
        (["--pwd", "S3CRET", "--pass", "S3CRET"], ["--pwd", "***", "--pass", "***"]),
        (["--passphrase=S3 CRET,S3CRET"], ["--passphrase=***"]),
        (["--pat", "S3CRET", "--pin", "S3CRET"], ["--pat", "***", "--pin", "***"]),
        (["--hf-token", "-S3CRET", "1"], ["--hf-token", "***", "1"]),
        (["--dbPassword", "S3CRET"], ["--dbPassword", "***"]),
        (["--user", "me:S3CRET"], ["--user", "me:***"]),
        (["--user=me:S3CRET", "-ume:S3CRET"], ["--user=me:***", "-ume:***"]),
        (["--api_keys", "S3CRET"], ["--api_keys", "***"]),
        (["-c", "curl --api-key S3CRET host"], ["-c", "curl --api-key *** host"]),
        (["PGPASSWORD=S3CRET"], ["PGPASSWORD=***"]),
        (["https://hooks.slack.com/services/T0/B0/S3CRET"], ["https://hooks.slack.com/***"]),
        (["DB_PASS=S3CRET;S3CRET"], ["DB_PASS=***"]),
        (["Server=tcp:host;Password=S3CRET;Timeout=5"], ["Server=tcp:host;Password=***;Timeout=5"]),
        (["https://host/x?sig=S3CRET&a=1"], ["https://host/x?sig=***&a=1"]),
        (["https://host/x?X-Amz-Signature=S3CRET"], ["https://host/x?X-Amz-Signature=***"]),
        (["postgresql://u:S3C/R@ET@host/db"], ["postgresql://***@host/db"]),
        (["--url=https://host/x?token=S3CRET"], ["--url=https://host/x?token=***"]),
        (["redis://:S3CRET@host"], ["redis://***@host"]),
        (["https://S3CRET@host/x"], ["https://***@host/x"]),
        (["-c", "wandb.login(key='S3CRET')"], ["-c", "wandb.login(key='***')"]),
        (["--use-auth-token", "--lr", "0.1"], ["--use-auth-token", "--lr", "0.1"]),
    ],
)
def test_a_secret_of_a_command_line_is_left_out(words, shown):
    assert without_secrets(words) == shown


@pytest.mark.parametrize(
    "token",
    [
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
        "glpat-abcdefghijklmnopqrst",
        "sk-proj-abcdEFGH1234_abcdEFGH",
        "sk_live_abcdefghijklmnop",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456-abcdef",
        "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
        "eyJhbGciOiJIUzI1NiJ9.abcdef.sig",
        "gsk_abcdefghijklmnopqrstuvwxyz",
        "nvapi-abcdefghijklmnopqrstuvwxyz",
        "SG.abcdefghijklmnopqrst.abcdefghijklmnopqrst",
        "eyJhcGlfYWRkcmVzcyI6Imh0dHBzOi8vaG9zdCJ9",
        HEX,
        f"local-{HEX}",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_token_of_a_known_form_is_left_out_wherever_it_stands(token):
    assert without_secrets(["x", token]) == ["x", "***"]
    assert redact(f"the server refuses {token} of me") == "the server refuses *** of me"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("401 for url: https://me:S3CRET@host/api", "401 for url: https://***@host/api"),
        ("password: S3CRET", "password: ***"),
        ("api_key: S3CRET is wrong", "api_key: *** is wrong"),
        ("{'Authorization': 'Bearer S3CRET', 'a': 1}", "{'Authorization': '***', 'a': 1}"),
        ("Incorrect API key: S3CRETS3CRETS3CRET", "Incorrect API key: ***"),
        ("sent Bearer S3CRET-S3CRET", "sent Bearer ***"),
        (
            "Command '['x', '--token', 'S3CRET', '-u', 'me:S3CRET']' f",
            "Command '['x', '--token', '***', '-u', 'me:***']' f",
        ),
        ("Command 'x --password S3CRET --lr 1' failed", "Command 'x --password *** --lr 1' failed"),
        ('{"api_key": "S3 CRET", "lr": 1}', '{"api_key": "***", "lr": 1}'),
    ],
)
def test_a_secret_in_a_text_is_left_out(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--n_tokens", "5", "--max-new-tokens=20", "--tokenizer", "x", "--pad_token", "<pad>"],
        ["--pass_rate", "0.5", "--passes", "3", "--bypass", "1", "--compass=n", "--n_pass", "2", "--pass-through", "x"],
        ["--path", "a", "--patience", "3", "--pattern=*.py", "--pin_memory", "1", "--spin", "2", "--author", "me"],
        ["--num-key-value-heads=4", "--key_dim", "8", "--sort-key", "len", "--monkey", "1", "--keypoints=17"],
        ["--auth-mode", "none", "--token_dropout=0.1", "--secretary", "Ann", "data/keys.csv", "--image-key=jpg"],
        ["--commit", HEX, f"--revision={HEX}", f"snapshots/{HEX}/a", "sk-learn-classification", "hf_hub_download"],
        ["python", "-u", "train.py", "-u", "http://host:80/x", "a@b.c", "git@github.com:me/it", "0.1:0.2"],
    ],
)
def test_what_only_sounds_like_a_secret_stays(words):
    assert without_secrets(words) == words


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'loss'",
        "missing key: 'encoder.layers.0.weight'",
        'Missing key(s) in state_dict: "fc.weight"',
        "unexpected token: )",
        f"at commit {HEX}",
        "the pass: 3 of 4; 2 tokens: a, b",
        "forward() got key_padding_mask=None, num_key_value_heads=4",
        "connection to http://host:5000/api/x refused",
        "use --token to give one, or --password instead; --max-tokens 5 --user alice -u http://host:80/x",
    ],
)
def test_other_texts_stay(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "name", ["api-key", "APIKey", "apiKey", "DB_PASS", "userpwd", "hf_token", "TOKEN2", "x.secret"]
)
def test_names_of_secrets(name):
    assert is_secret_name(name)
