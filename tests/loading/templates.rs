//! Tests that chat templates render as Python's Jinja2 renders them: 70 templates of well-known models, and single
//! constructs in which the engine and Jinja2 differ. `tests/record/templates.py` recorded the texts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flexdraft::model::{ChatTemplate, LoadError, TemplateVariables};
use serde::Deserialize;
use tempfile::TempDir;

fn templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers/templates")
}

#[derive(Deserialize)]
struct Rendered {
    unix_seconds: u64,
    tokens: BTreeMap<String, String>,
    /// The template's variables as JSON text, by the name of the case.
    cases: BTreeMap<String, String>,
    rows: Vec<Row>,
}

/// The text that Jinja2 rendered for a template and a case; no text if Jinja2 failed.
#[derive(Deserialize)]
struct Row {
    template: String,
    case: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Snippets {
    unix_seconds: u64,
    variables: String,
    rows: Vec<Snippet>,
}

#[derive(Deserialize)]
struct Snippet {
    source: String,
    text: Option<String>,
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_slice(&fs::read(templates().join(name)).unwrap()).unwrap()
}

/// A directory with a template and the special tokens that it may name.
fn with_template(source: &[u8], tokens: &BTreeMap<String, String>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), serde_json::to_string(tokens).unwrap()).unwrap();
    dir
}

/// Shows the place at which two texts begin to differ.
fn difference(found: &str, expected: &str) -> String {
    let same = found.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
    let shown = |text: &str| text.chars().skip(same.saturating_sub(30)).take(90).collect::<String>();
    format!("found {:?}, expected {:?}", shown(found), shown(expected))
}

#[test]
fn templates_of_well_known_models() {
    let recorded: Rendered = read("rendered.json");
    let mut rendered = 0;
    for rows in recorded.rows.chunk_by(|a, b| a.template == b.template) {
        let name = &rows[0].template;
        let dir = with_template(&fs::read(templates().join(name)).unwrap(), &recorded.tokens);
        let template = ChatTemplate::read(dir.path()).unwrap();
        for row in rows {
            let variables = TemplateVariables::from_json(&recorded.cases[&row.case]).unwrap();
            let found = template.render_at(&variables, recorded.unix_seconds);
            match (found, &row.text) {
                (Ok(found), Some(expected)) => {
                    assert!(found == *expected, "{name}, {}: {}", row.case, difference(&found, expected));
                    rendered += 1;
                }
                (Err(LoadError::ChatTemplate { .. }), None) => {}
                (found, expected) => panic!("{name}, {}: {found:?}, expected {expected:?}", row.case),
            }
        }
    }
    assert!(rendered > 600, "{rendered}");
}

/// Constructs that Jinja2 renders and flexdraft refuses, with the words by which the error names each construct.
const NOT_SUPPORTED: [(&str, &str); 4] = [
    ("cycler(", "function: cycler is unknown"),
    ("joiner(", "function: joiner is unknown"),
    ("| wordcount", "filter: filter wordcount is unknown"),
    (".is_integer()", "the method `is_integer` of a value of type float is not supported"),
];

#[test]
fn single_constructs() {
    let recorded: Snippets = read("snippets.json");
    let variables = TemplateVariables::from_json(&recorded.variables).unwrap();
    let (mut rendered, mut refused) = (0, 0);
    for Snippet { source, text } in &recorded.rows {
        let dir = with_template(source.as_bytes(), &BTreeMap::new());
        let found = ChatTemplate::read(dir.path())
            .and_then(|template| template.render_at(&variables, recorded.unix_seconds));
        let exception = NOT_SUPPORTED.iter().find(|(construct, _)| source.contains(construct));
        match (found, text, exception) {
            (Ok(found), Some(expected), _) => {
                assert!(found == *expected, "{source}: {}", difference(&found, expected));
                rendered += 1;
            }
            (Err(LoadError::ChatTemplate { reason, .. }), Some(_), Some((_, named))) => {
                assert!(reason.contains(named), "{source}: {reason}");
                refused += 1;
            }
            (Err(LoadError::ChatTemplate { .. }), None, _) => {}
            (found, expected, _) => panic!("{source}: {found:?}, expected {expected:?}"),
        }
    }
    assert!(rendered >= 70 && refused == NOT_SUPPORTED.len(), "{rendered}, {refused}");
}

#[test]
fn constructs_that_are_not_supported_are_named() {
    let error = |source: &str| {
        let dir = with_template(source.as_bytes(), &BTreeMap::new());
        let variables = TemplateVariables::from_json("{\"a\": [1]}").unwrap();
        let result = ChatTemplate::read(dir.path()).and_then(|template| template.render_at(&variables, 0));
        result.unwrap_err().to_string()
    };
    for (source, named) in [
        ("{% include 'other' %}", "the tag `include` is not supported"),
        ("{% trans %}a{% endtrans %}", "the tag `trans` is not supported"),
        ("{{ f(*a) }}", "an argument list with `*` or `**` is not supported"),
        ("{{ '%b' % 1 }}", "the format `%b` is not supported"),
        ("{{ '\\N{DASH}' }}", "the escape `\\N{…}` in a string is not supported"),
        ("{{ a.items", "a tag without `}}` is not supported"),
        ("{% raw %}", "`raw` without `endraw` is not supported"),
        ("{{ 'a'.translate({}) }}", "the method `translate` of a value of type str is not supported"),
        ("{{ a | xmlattr }}", "filter xmlattr is unknown"),
        ("{{ ('<' | safe).upper() }}", "a string that `safe` or `escape` marks is not supported"),
        ("{{ range }}", "a value of type object cannot be printed"),
    ] {
        let error = error(source);
        assert!(error.contains(named), "{source}: {error}");
    }
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(1000), ")".repeat(1000));
    assert!(error(&nested).contains("nests more than 40 deep"));
}

/// As Python prints it.
#[test]
fn digits_of_all_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let source = "{% for t in ['7', '\u{663}', '\u{b2}', '\u{2460}', '\u{bd}', 'x', ''] %}\
                  {{ t.isdecimal() }} {{ t.isdigit() }} {{ t.isnumeric() }};{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let variables = TemplateVariables::from_json("{}").unwrap();
    let found = ChatTemplate::read(dir.path()).unwrap().render_at(&variables, 0).unwrap();
    let rows = ["True True True", "True True True", "False True True", "False True True", "False False True"];
    assert_eq!(found, rows.join(";") + ";False False False;False False False;");
}

#[test]
fn variables_that_are_no_object() {
    let error = |json| TemplateVariables::from_json(json).unwrap_err().to_string();
    assert_eq!(error("[1]"), "variables of a chat template: expected an object, found a list");
    assert!(error("{\"a\": ").starts_with("variables of a chat template: EOF while parsing"));
}
