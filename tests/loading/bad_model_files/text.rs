//! Tests with tokenizers and chat templates that do not work.

use flexdraft::model::{ChatMessage, ChatTemplate, TemplateVariables, Tokenizer};

use super::directory::Copy;

#[test]
fn tokenizers_and_templates() {
    let dir = Copy(tempfile::tempdir().unwrap());
    dir.write("tokenizer.json", "{}");
    let error = dir.message(Tokenizer::read(dir.path(), 64).unwrap_err());
    assert!(error.starts_with("tokenizer tokenizer.json: "), "{error}");

    let template_error = || dir.message(ChatTemplate::read(dir.path()).unwrap_err());
    dir.write("tokenizer_config.json", "{\"chat_template\": 1}");
    assert_eq!(
        template_error(),
        "tokenizer_config.json: `chat_template` is 1, expected a template, or a list of templates with one named `default`"
    );
    dir.write("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"tools\", \"template\": \"\"}]}");
    assert!(
        template_error().ends_with("expected a template, or a list of templates with one named `default`")
    );
    dir.write("tokenizer_config.json", "{\"chat_template\": \"{% for %}\"}");
    let error = template_error();
    assert!(error.starts_with("chat template tokenizer_config.json: syntax error: "), "{error}");
    dir.write("tokenizer_config.json", "{\"chat_template\": \"\", \"bos_token\": 1}");
    assert_eq!(
        template_error(),
        "tokenizer_config.json: `bos_token` is 1, expected a token's text, or an object with its `content`"
    );
    dir.write("chat_template.jinja", [0xff]);
    dir.write("tokenizer_config.json", "{}");
    let error = template_error();
    assert!(error.starts_with("chat template chat_template.jinja: invalid utf-8"), "{error}");
    dir.write("chat_template.jinja", "{{ messages[7].content }}");
    let error = ChatTemplate::read(dir.path())
        .unwrap()
        .render(&TemplateVariables::new(&[ChatMessage::new("user", "a")], true))
        .unwrap_err();
    assert_eq!(dir.message(error), "chat template chat_template.jinja: undefined value (in chat_template:1)");
}
