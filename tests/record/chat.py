"""Records chat templates in the style of well-known models, and the prompts that transformers renders with them."""

import datetime
import json
import shutil

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from common import OUT, TINY, write

UNIX_SECONDS = 1_756_684_799  # 2025-08-31 23:59:59 UTC


class FrozenDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(UNIX_SECONDS, datetime.timezone.utc)


# A plain ChatML template with a default system message, as in SmolLM2 and Qwen2.
CHATML = """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""

# A template like Llama 3's: BOS, headers, trimmed contents, a date, complaints about roles.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# A template like Qwen3's: a namespace found by walking backwards, string methods, thoughts cut out of older turns.
QWEN3 = """{%- set ns = namespace(multi_step=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "system" %}
        {{- '<|im_start|>system\\n' + content.strip() + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# A template with features that the other templates lack: macros, tojson, dictionaries, loop controls, generation marks.
FEATURES = """{%- macro header(role, options={}) -%}
[{{ role | upper }}{% for key, value in options.items() %} {{ key }}={{ value }}{% endfor %}]
{% endmacro -%}
{# a comment #}
{%- set settings = {"temperature": 0.5, "stop": [eos_token, "</s>"], "nested": {"b": none, "a": true}} -%}
{{ settings | tojson }}
{{ settings.nested | tojson(indent=2) }}
{% for message in messages %}
  {%- if message.role == 'ignored' %}{% continue %}{% endif %}
  {{- header(message.role, {'n': loop.index, 'first': loop.first}) }}
  {%- if message.role == 'assistant' -%}
    {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
  {%- else -%}
    {{ message | tojson }} {{ message.content.replace('a', 'A').title() | default('none') }}
  {%- endif %}
{{ '\\n' -}}
{% endfor %}
{%- if add_generation_prompt %}{{ header('assistant') ~ pad_token }}{% endif -%}
"""

TEMPLATES = {
    "chatml": (CHATML, dict(bos_token="<|im_start|>", eos_token="<|im_end|>"), "config"),
    "llama3": (LLAMA3, dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"), "file"),
    "qwen3": (QWEN3, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), "named"),
    "features": (FEATURES, dict(bos_token="<s>", eos_token="</s>"), "config"),
}

ROLES = ["system", "user", "assistant", "user"]
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "  Be brief. \n"), ("user", "What is 2 < 3 & 'x' > \"y\"?")],
    [("user", "über 😀\n\ttabs"), ("assistant", "<think>\nhm\n</think>\n\nYes.\n"), ("user", " again? ")],
    [("system", "S"), ("user", "a"), ("assistant", "<think>old</think>b"), ("user", "c"), ("assistant", "<think>\nnew\n</think>\n\nd")],
    [("user", "{{ not a template }} {% nor this %}"), ("assistant", "")],
    [("user", "a"), ("assistant", "b"), ("tool", "1"), ("tool", "2"), ("assistant", "c"), ("ignored", "x"), ("user", "d")],
    [("user", "twice"), ("user", "in a row")],
]


def save(name, template, tokens, where):
    path = OUT / "chat" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    config = {
        key: {"__type": "AddedToken", "content": text, "special": True} if key == "bos_token" else text
        for key, text in tokens.items()
    }
    match where:
        case "config":
            config["chat_template"] = template
        case "named":
            config["chat_template"] = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        case "file":
            # transformers prefers the template file to the config's template.
            config["chat_template"] = "{{ 'not this one' }}"
            (path / "chat_template.jinja").write_text(template)
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    chat_template_utils.datetime = FrozenDatetime
    cases = []
    for name, (template, tokens, where) in TEMPLATES.items():
        save(name, template, tokens, where)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TINY / "target" / "tokenizer.json"), **tokens)
        tokenizer.chat_template = template
        for conversation in CONVERSATIONS:
            messages = [dict(role=role, content=content) for role, content in conversation]
            for add_generation_prompt in (False, True):
                case = dict(template=name, messages=messages, add_generation_prompt=add_generation_prompt)
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=add_generation_prompt
                    )
                except jinja2.exceptions.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
    write(OUT / "chat" / "cases.json", dict(unix_seconds=UNIX_SECONDS, cases=cases))


if __name__ == "__main__":
    main()
