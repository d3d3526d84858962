"""Chat templates in the styles that published models use, written for these tests."""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
  {%- set turns = messages[1:] -%}{%- set preface = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
  {%- set turns = messages -%}{%- set preface = '' -%}
{%- endif -%}
{%- for turn in turns -%}
  {%- if (turn.role == 'user') != (loop.index0 is divisibleby 2) -%}
    {{- raise_exception('roles must alternate user/assistant, turn ' ~ loop.index ~ ' is ' ~ turn.role) -}}
  {%- endif -%}
  {%- if turn.role == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ (preface if loop.first else '') ~ turn.content.strip() ~ ' [/INST]' -}}
  {%- else -%}
    {{- ' ' ~ turn.content | trim ~ ' ' ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You can call these functions, in JSON.\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- (message.content | tojson if message.content is mapping else message.content) + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception("This model takes one tool call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """\
{{- bos_token -}}
{%- set ns = namespace(system='', last_user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{%- set ns.system = message.content -%}{%- endif -%}
  {%- if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
  {%- if message.role == 'user' -%}
    {%- if loop.index0 == ns.last_user and tools -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
    [INST]{%- if loop.index0 == ns.last_user and ns.system %} {{ ns.system ~ '\\n\\n' }}{%- endif %} {{ message.content }}[/INST]
  {%- elif message.role == 'assistant' and message.tool_calls is defined and message.tool_calls -%}
    [TOOL_CALLS][
    {%- for call in message.tool_calls -%}
      {{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson -}}{{- ', ' if not loop.last -}}
    {%- endfor -%}]{{- eos_token -}}
  {%- elif message.role == 'assistant' -%}{{- ' ' + message.content + eos_token -}}
  {%- elif message.role == 'tool' -%}
    [TOOL_RESULTS]{{- {'content': message.content, 'call_id': message.tool_call_id} | tojson -}}[/TOOL_RESULTS]
  {%- else -%}{{- raise_exception('Only user, assistant, system and tool roles are supported, not ' ~ message.role) -}}
  {%- endif -%}
{%- endfor -%}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

GEMMA3_PARTS = """\
{{ bos_token }}
{%- for message in messages -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content or '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and thought %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

DEEPSEEK = """\
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{% set ns = namespace(system='', tool_open=false) %}
{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{%- endif %}{%- endfor %}
{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
    {%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}
    {%- elif m['role'] == 'assistant' and m['tool_calls'] %}
        {{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
        {%- for tool in m['tool_calls'] %}
            {{- '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] | tojson + '<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif m['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' + (m['content'].split('</think>', 1)[1] if '</think>' in m['content'] else m['content']) + eos_token }}
    {%- elif m['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{{ '<think>\\n' if thinking else '</think>' }}{% endif %}
"""

PHI3 = """\
{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

COMMAND_RAG = """\
{{ bos_token }}{% macro turn(role, text) %}<|START_OF_TURN_TOKEN|><|{{ role | upper }}_TOKEN|>{{ text }}<|END_OF_TURN_TOKEN|>{% endmacro %}
{% for message in messages if message.role != 'system' %}{{ turn('chatbot' if message.role == 'assistant' else message.role, message.content) }}{% endfor %}
{% if documents %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>
{% for document in documents %}
Document: {{ loop.index0 }}
{% for key, value in document.items() | sort %}{{ key | title }}: {{ value }}
{% endfor %}
{% endfor %}</results><|END_OF_TURN_TOKEN|>{% endif %}
{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}
"""

GENERATION = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

  {%- else -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
  {%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

HARMONY = """\
{%- macro params(properties) -%}
{%- for name, schema in properties.items() %}
// {{ schema.description | default('no description') }}
{{ name }}: {{ 'number' if schema.type in ('integer', 'number') else schema.type }}{{ ' | null' if schema.nullable }},
{%- endfor -%}
{%- endmacro -%}
{%- set first = messages[0] if messages[0].role in ['developer', 'system'] else none -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}
{{ '# Valid channels: ' ~ ['analysis', 'commentary', 'final'] | join(', ') }}<|end|>
{%- if first or tools -%}
<|start|>developer<|message|>{% if first %}# Instructions
{{ first.content }}{% endif %}
{%- for tool in tools or [] %}
type {{ tool.function.name }} = (_: { {{- params(tool.function.parameters.properties) }}
});
{%- endfor %}<|end|>
{%- endif -%}
{%- for message in (messages[1:] if first else messages) -%}
  {%- if message.role == 'assistant' and message.thinking is defined and loop.last -%}
<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>
  {%- endif -%}
  {%- if message.role == 'assistant' -%}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
  {%- elif message.role == 'tool' -%}<|start|>functions.{{ message.name }} to=assistant<|message|>{{ message.content | tojson }}<|end|>
  {%- else -%}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
  {%- endif -%}
  {%- if loop.index > 40 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""

ALL = {name: value for name, value in globals().items() if name.isupper()}
