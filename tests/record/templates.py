"""Records what Jinja2 renders for the chat templates that come with llama-cpp-python's source package.

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    python tests/record/templates.py llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates

The environment is the one in which transformers compiles chat templates (`chat_template_utils.py`), and only Jinja2
itself is needed.
"""

import datetime
import json
import pathlib
import shutil
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common import OUT, write_rows

UNIX_SECONDS = 1_756_684_799  # 2025-08-31 23:59:59 UTC
TEMPLATES = OUT / "templates"


class Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which renders as its contents."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.fromtimestamp(UNIX_SECONDS, datetime.timezone.utc).strftime(format)


def environment():
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def function(name, **properties):
    parameters = dict(type="object", properties=properties, required=list(properties))
    return dict(type="function", function=dict(name=name, description=f"Does {name} <b>'now'</b>.", parameters=parameters))


TOOLS = [
    function("get_weather", city=dict(type="string", description="The city's name"), unit=dict(type="string", enum=["C", "F"])),
    function("add", a=dict(type="number", description="é \"quoted\""), flags=dict(type="array", items=dict(type="boolean"))),
]
USER = dict(role="user", content="What's 2 < 3 & \"x\"?\n  é 😀 ")
SYSTEM = dict(role="system", content="  Be brief.\n")
ARGUMENTS = dict(city="Łódź", n=[1, 2.5, True, None], deep=dict(quote="it's"))


def call(arguments):
    return dict(
        role="assistant",
        content="",
        tool_calls=[dict(id="call12345", type="function", function=dict(name="get_weather", arguments=arguments))],
    )


def tool_turns(arguments):
    return [
        SYSTEM,
        dict(role="user", content="The weather?"),
        call(arguments),
        dict(role="tool", tool_call_id="call12345", name="get_weather", content='{"degrees": 21}'),
        dict(role="assistant", content="21 degrees."),
        dict(role="user", content="And tomorrow?"),
    ]


THOUGHT = dict(role="assistant", content="Yes.", reasoning_content="Is it?\n\nIt is.", thinking="Is it?")
IN_TEXT = dict(role="assistant", content="<think>\nold\n</think>\n\nNo.")
CASES = {
    "user": dict(messages=[USER], add_generation_prompt=True),
    "turns": dict(messages=[SYSTEM, USER, dict(role="assistant", content="Yes.\n"), dict(role="user", content="Why?")], add_generation_prompt=True),
    "closed": dict(messages=[USER, dict(role="assistant", content=" Yes. ")], add_generation_prompt=False),
    "tools": dict(messages=[dict(role="user", content="The weather?")], tools=TOOLS, add_generation_prompt=True),
    "called": dict(messages=tool_turns(ARGUMENTS), tools=TOOLS, add_generation_prompt=True),
    "called_text": dict(messages=tool_turns(json.dumps(ARGUMENTS)), tools=TOOLS, add_generation_prompt=True),
    "last_call": dict(messages=tool_turns(ARGUMENTS)[:3], tools=TOOLS[:1], add_generation_prompt=False),
    "reasoning": dict(messages=[USER, THOUGHT, dict(role="user", content="Why?"), IN_TEXT, dict(role="user", content="So?")], add_generation_prompt=True, enable_thinking=True),
    "no_thinking": dict(messages=[SYSTEM, USER, IN_TEXT, dict(role="user", content="So?")], add_generation_prompt=True, enable_thinking=False),
    "parts": dict(messages=[dict(role="user", content=[dict(type="text", text="One."), dict(type="text", text=" Two.")])], add_generation_prompt=True),
    "empty": dict(messages=[], add_generation_prompt=True),
}
TOKENS = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


# Constructs in which the template engine and Python's Jinja2 differ, or could.
VARIABLES = dict(
    text="aXb-cXd", word="hello", lines="one\n two\r\nthree\n", number=7, float=2.5, large=1e20, small=0.00001,
    list=[1, "a'b", None, True, 2.0, [], {}], dict={"b": 1, "a": "x", "items": [1]}, empty=[], nothing=None, yes=True,
    messages=[dict(role="user", content="Hi"), dict(role="assistant", content=None)], html="<b>&\"'", unicode="é😀\u200b\t",
)
SNIPPETS = [
    "{{ list }}|{{ dict }}|{{ (1, 'a') }}|{{ (1,) }}|{{ () }}|{{ unicode }}|{{ [unicode] }}",
    "{{ 'x' ~ list ~ nothing ~ yes ~ float ~ large ~ small ~ missing }}",
    "{{ large }} {{ small }} {{ [large, small, 1.0, -0.0, 100000000000000000000] }}",
    "{{ list | string }}|{{ list | join(', ') }}|{{ dict | join('-') }}|{{ 'abc' | join(',') }}|{{ messages | join(';', attribute='role') }}",
    "{{ nothing is iterable }} {{ missing is iterable }} {{ text is iterable }} {{ number is iterable }} {{ dict is iterable }} {{ list is iterable }}",
    "{{ nothing is sequence }} {{ missing is sequence }} {{ text is sequence }} {{ number is sequence }} {{ dict is sequence }} {{ list is sequence }}",
    "{{ yes is number }} {{ number is number }} {{ float is number }} {{ text is number }} {{ nothing is number }}",
    "{{ yes is integer }} {{ number is integer }} {{ float is integer }} {{ float is float }} {{ number is float }} {{ yes is boolean }}",
    "{{ dict is mapping }} {{ list is mapping }} {{ text is mapping }} {{ missing is mapping }} {{ text is string }} {{ missing is string }}",
    "{{ missing is defined }} {{ nothing is defined }} {{ nothing is none }} {{ missing is none }} {{ text is callable }} {{ range is callable }}",
    "{{ yes is true }} {{ yes is false }} {{ 4 is divisibleby 2 }} {{ 3 is odd }} {{ 3 is even }} {{ 'a' is in 'abc' }} {{ 3 is not in [1] }} {{ 1 is eq 1 }} {{ 'ab' is lower }}",
    "{{ missing | length }} {{ missing | first }} {{ missing | last }} {{ empty | first }} {{ empty | last }} {{ text | first }} {{ text | last }} {{ list | first }}",
    "{{ nothing | length }}", "{{ number | length }}", "{{ nothing | first }}", "{{ missing.attribute }}", "{{ nothing.attribute }}|{{ text.attribute }}|{{ list.attribute }}",
    "{% for x in nothing %}x{% endfor %}", "{% for x in missing %}x{% else %}none{% endfor %}", "{% for x in number %}{% endfor %}", "{% for c in word %}{{ c }}.{% endfor %}",
    "{% for k in dict %}{{ k }},{% endfor %}{% for k, v in dict.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in dict | items %}{{ k }};{% endfor %}{% for pair in dict.items() %}{{ pair }}{% endfor %}",
    "{{ dict.keys() | list }} {{ dict.values() | list }} {{ dict.items() | list }} {{ dict.get('b') }} {{ dict.get('z') }} {{ dict.get('z', 3) }} {{ dict['items'] }}",
    "{{ 'a' in dict }} {{ 'z' in dict }} {{ 1 in list }} {{ 'X' in text }} {{ 'z' not in text }} {{ 1 in missing }}", "{{ 1 in text }}", "{{ 1 in nothing }}",
    "{{ '%s is %d' % ('a', 3) }} {{ '%5.2f|%-5s|%05d|%x|%%' % (2.345, 'ab', 42, 255) }} {{ '%s' % list }} {{ '%r' % word }} {{ '%(b)s' % dict }}",
    "{{ '%d' % 'a' }}", "{{ '%s %s' % 'a' }}", "{{ '%s' % ('a', 'b') }}", "{{ '%s' % word }}{{ '%+d % d %e %s' % (1, 2, 12345.678, none) }}", "{{ '{} {} {a}'.format(1, 'b', a=2) }} {{ '%s=%s' | format('a', 1) }}",
    "{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7 // 2 }} {{ 7 // 2 }} {{ 7.5 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}",
    "{{ '12' | int }} {{ ' 12 ' | int }} {{ '1_000' | int }} {{ '3.9' | int }} {{ 3.9 | int }} {{ -3.9 | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ 'x' | int(default=6) }} {{ nothing | int }} {{ yes | int }} {{ 'ff' | int(base=16) }} {{ list | int }}",
    "{{ '1.5' | float }} {{ 'x' | float }} {{ 2 | float }} {{ nothing | float(1.5) }} {{ 3.14159 | round(2) }} {{ 2.5 | round }} {{ 7 | abs }}",
    "{{ text.split('X') }} {{ text.rsplit('X', 1) }} {{ text.split('X', 1) }} {{ ' a  b '.split() }} {{ ' a  b c '.rsplit(none, 1) }} {{ ' a  b c '.split(none, 1) }} {{ text.split(sep='X', maxsplit=1) }} {{ ''.split() }} {{ ''.split(',') }}",
    "{{ text.partition('X') }} {{ text.rpartition('X') }} {{ text.partition('!') }} {{ text.rpartition('!') }} {{ text.removeprefix('aX') }} {{ text.removesuffix('Xd') }} {{ text.removeprefix('zz') }}",
    "{{ lines.splitlines() }} {{ lines.splitlines(true) }} {{ text.find('X') }} {{ text.rfind('X') }} {{ text.find('z') }} {{ 'é😀x'.find('x') }} {{ text.count('X') }} {{ text.index('X') }}",
    "{{ text.upper() }} {{ text.title() }} {{ text.capitalize() }} {{ text.swapcase() }} {{ text.zfill(10) }} {{ '-5'.zfill(4) }} {{ 'ab'.center(7, '*') }} {{ 'ab'.ljust(4) }}| {{ 'ab'.rjust(4) }}",
    "{{ '  x '.strip() }}|{{ '  x '.lstrip() }}|{{ '  x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ text.startswith('aX') }} {{ text.endswith(('z', 'd')) }} {{ text.startswith('b', 2) }}",
    "{{ text.replace('X', '-') }} {{ text.replace('X', '-', 1) }} {{ text | replace('X', '-') }} {{ text | replace('X', '-', 1) }} {{ 'abc'.replace('', '.') }} {{ '-'.join(['a', 'b']) }}",
    "{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ ''.isspace() }} {{ 'aB'.isupper() }} {{ 'ab'.islower() }}",
    "{{ word.nothing() }}", "{{ list.append(1) }}", "{{ dict.update({}) }}", "{{ nothing.strip() }}", "{{ '-'.join([1]) }}",
    "{% macro f(a, b=a, c='c') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(1, c=3) }}{{ f(b=2, a=1) }}{{ f(1, missing) }}{{ f(1, c=missing) }}{{ f() }}",
    "{% macro f(a) %}{{ a }}|{{ varargs }}|{{ kwargs }};{% endmacro %}{{ f(1) }}{{ f(1, 2, 3) }}{{ f(1, x=2) }}{{ f(1, 2, y=[3]) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(x=1) }}",
    "{% macro outer(x) %}[{{ inner(x) }}]{% endmacro %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ outer(1) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}in{% endcall %}{% macro each(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each([1, 2]) %}<{{ x }}>{% endcall %}",
    "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t = (1, [2]) %}{{ t }}{% set ns = namespace(n=0, s='') %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{% endfor %}{{ x }}",
    "{% for x in [3, 1, 2] if x > 1 %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for x in [[1, [2]], 3] recursive %}{% if x is sequence %}[{{ loop(x) }}]{% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in messages | map(attribute='role') %}{{ x }},{% endfor %}{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('content') | list | length }}",
    "{% if messages | selectattr('role', 'equalto', 'tool') %}true{% else %}false{% endif %}{% set g = [1, 2] | map('string') %}{{ g | list }}{{ g | list }}", "{{ [1] | map('string') | length }}", "{{ [1] | map('string') | tojson }}",
    "{{ [1, 2, 3] | select('odd') | list }} {{ [1, 2] | reject('odd') | list }} {{ ['b', 'a'] | sort }} {{ [1, 2, 2] | unique | list }} {{ [1, 2] | sum }} {{ [1, 5] | max }} {{ [3, 1] | min }} {{ [1, 2, 3] | reverse | list }} {{ 'abc' | reverse }}",
    "{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ dict | dictsort }} {{ messages | groupby('role') | length }}",
    "{{ list | tojson }} {{ dict | tojson }} {{ dict | tojson(indent=2) }} {{ unicode | tojson }} {{ (1, 2) | tojson }} {{ large | tojson }} {{ html | tojson }}", "{{ missing | tojson }}",
    "{{ word[0] }} {{ word[-1] }} {{ word[1:3] }} {{ word[::-1] }} {{ word[:-1] }} {{ list[1:3] }} {{ empty[::-1] }} {{ list[::-1] | first }} {{ list[10] }}| {{ word[::2] }} {{ word[-3:] }} {{ [1, 2, 3][5:] }} {{ (1, 2, 3)[1:] }}", "{{ dict[1:] }}", "{{ missing[1:] }}", "{{ nothing[0] }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 'a' == 'a' }} {{ not yes }} {{ yes and 1 }} {{ nothing or 'x' }} {{ 1 if yes }} {{ 1 if not yes }}| {{ 'a' if false else 'b' if false else 'c' }}",
    "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ [0] * 2 }} {{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 'a' 'b' }} {{ '\\n' }} {{ 'a\\'b' }} {{ \"\\x41\\u00e9\" }} {{ '\\d' }}", "{{ 'a' + 1 }}", "{{ 'a' + nothing }}", "{{ 'a' + missing }}",
    "{{ text | trim('ad') }} {{ '  a ' | trim }}| {{ nothing | trim }} {{ missing | upper }} {{ number | upper }} {{ 'a-b c' | title }} {{ 'aB' | capitalize }} {{ 'x' | default('y') }} {{ missing | default('y') }} {{ '' | default('y', true) }} {{ nothing | default('z') }} {{ missing | d }}|",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(width=1, first=false, blank=true) }}|{{ 'a\nb\n' | indent('> ') }}|",
    "{{ html }} {{ html | e }} {{ html | safe }} {{ 'x' | safe + html }} {{ html + 'y' | safe }} {{ 'x' ~ html | safe }}",
    "{{ dict.b }} {{ dict.items is defined }} {{ dict.zzz is defined }}",
    "a{# comment #}b{%- if true -%}  c  {%- endif %}  d\n{% if true %}\n  e\n{% endif %}\n  {% if true %}f{% endif %}\n{%+ if true +%}\ng{% endif %}{{- ' h ' -}}  i\n",
    "one\r\n{% if true %}\r\ntwo\r{% endif %}\r\n{{ 'a\r\nb' }}\r\n", "{% raw %}{{ x }}{% if %}{% endraw %}!{{ '{{ x }}' }}{{ '%}' }}{{ {'a': {'b': 1}} }}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x }}{{ x | length }}{% set y | upper %}abc{% endset %}{{ y }}{% filter upper %}def{% endfilter %}{% with a=1, b=2 %}{{ a + b }}{% endwith %}",
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% generation %}a{% endgeneration %}", "{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{{ range(3) | list }}",
    "{{ dict(a=1, b='c') }} {{ 0x1F }} {{ 1_000 }} {{ 1e3 }} {{ 1.5e-7 }} {{ none }} {{ None }} {{ True }} {{ true }}", "{% include 'x' %}", "{% import 'x' as y %}", "{{ f(*list) }}", "{% trans %}a{% endtrans %}",
    "{{ text is not none and text | length > 3 }} {{ not text is none }} {{ (text is string) and number is number }} {{ missing is not defined or missing }} {{ number is gt 3 }} {{ messages[0].role is eq('user') }}",
    "{{ messages[0]['content'] }} {{ messages[-1].content }} {{ messages[0].get('name', 'x') }} {{ messages | length }} {{ messages[1:] | length }} {{ messages[0] }}",
    "{{ raise_exception('stop: ' ~ 1) }}", "{{ strftime_now('%Y-%m-%d %H:%M:%S %A %j') }}", "{{ cycler('a', 'b').next() }}", "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b", "{{ [[1, 2], [3]] | map('first') | list }} {{ ['a'] | map('upper') | join }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [{'a': 1}, {}] | map(attribute='a', default=0) | list }}",
    "{{ [1, [2, 'x'], {'k': (1,)}] | string }} {{ [nothing, missing] | string }}", "{{ namespace(a=1).a }} {{ [namespace] | length }}", "{{ 5 | string + 'a' }} {{ yes | string }} {{ 'x' | list }} {{ dict | list }} {{ missing | list }}", "{{ nothing | list }}", "{{ 'a,b'.split(',') | last }} {{ 'a,b'.split(',')[0] }} {{ ('a', 'b') | join }} {{ 'ab' in ['ab'] }}", "{{ 'wordcount is 3' | wordcount }} {{ 'abcdef' | truncate(3, true, '') }} {{ [3, 1] | sort(reverse=true) }} {{ messages | map(attribute='content') | select('string') | list }}",
    "{{ 1 if missing else 2 }}{{ missing or 3 }}{{ (missing | default([])) | length }}{{ 'yes' if 'a' in missing else 'no' }}{{ missing == none }}{{ missing == missing2 }}", "{{ number.real }}|{{ float.is_integer() }}", "{{ 'é' | length }} {{ 'é'.upper() }} {{ 'ß'.upper() }} {{ 'ǅ'.lower() }}",
]


def render(template, case):
    variables = {"tools": None, "documents": None, **TOKENS, **case}
    try:
        return dict(text=template.render(**variables))
    except Exception as error:
        return dict(error=f"{type(error).__name__}: {error}")


def main(folder):
    shutil.rmtree(TEMPLATES, ignore_errors=True)
    TEMPLATES.mkdir(parents=True)
    rows = []
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        source = path.read_bytes()
        (TEMPLATES / path.name).write_bytes(source)
        # The template's line endings reach Jinja2 unchanged, as in transformers.
        template = environment().from_string(source.decode())
        rows += [dict(template=path.name, case=name, **render(template, case)) for name, case in CASES.items()]
    # The variables are recorded as JSON text, because the order of keys matters.
    cases = {name: json.dumps(case, ensure_ascii=False) for name, case in CASES.items()}
    head = dict(unix_seconds=UNIX_SECONDS, tokens=TOKENS, cases=cases)
    write_rows(TEMPLATES / "rendered.json", head, "rows", rows)
    snippets = []
    for source in SNIPPETS:
        try:
            snippets.append(dict(source=source, **render(environment().from_string(source), VARIABLES)))
        except jinja2.exceptions.TemplateSyntaxError as error:
            snippets.append(dict(source=source, error=f"TemplateSyntaxError: {error}"))
    write_rows(TEMPLATES / "snippets.json", dict(unix_seconds=UNIX_SECONDS, variables=json.dumps(VARIABLES, ensure_ascii=False)), "rows", snippets)
    failed = sum("error" in row for row in rows)
    print(f"{len(rows)} prompts, {failed} of them errors", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
