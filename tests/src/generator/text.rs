//! Prose, code and Chinese, and how a model cuts them into tokens.

use super::random::Random;

const ENGLISH: [&str; 24] = [
    "The gateway checks the key, counts the tokens and forwards the request to the model server.",
    "Please summarise the incident below for the weekly report and name the open questions.",
    "Between 02:10 and 02:40 the queue grew to 1,200 requests because one worker was restarted.",
    "What would you measure first, and which result would change your mind?",
    "Our retention policy says that conversations are kept for ninety days unless legal asks for more.",
    "The unit test fails only when the two services start in the same second.",
    "Write a function that reads the file line by line and skips what it cannot parse.",
    "According to the manual the pump must not run dry for more than thirty seconds.",
    "I have attached the log; the interesting part begins after the third warning.",
    "Customers in the north ask for delivery before noon, the others do not mind.",
    "Translate the following paragraph and keep the product names as they are.",
    "He said \"it works on my machine\", which is true and does not help.",
    "The contract ends on 31 March; both parties may extend it by twelve months.",
    "Use a table with three columns: item, owner, due date.",
    "Latency at the 99th percentile rose from 420 ms to 1.9 s after the upgrade.",
    "If the sensor reports more than 80 °C, the controller closes the valve.",
    "Compare both offers with regard to price, support and the time to migrate.",
    "Nobody on the team remembers why the flag was added in 2019.",
    "Explain the difference between a mutex and a semaphore to a new colleague.",
    "The invoice lists 14 licences, but only 11 are in use.",
    "Path: C:\\projects\\gateway\\config.yaml, line 42, column 7.",
    "Rows that cannot be stored are kept aside and can be retried later.",
    "Draft a polite answer that declines the request and offers a call next week.",
    "Memory stays flat until the cache is warm and then grows by 2 MB an hour.",
];

const CHINESE: [&str; 14] = [
    "网关检查密钥、统计令牌并转发请求。",
    "请根据下面的会议记录写一份简短的纪要。",
    "大模型推理服务部署在内网，外部无法直接访问。",
    "昨天夜里两点十分，队列积压到一千二百个请求。",
    "请把这段文字翻译成英文，产品名称保持不变。",
    "这个函数逐行读取文件，遇到无法解析的行就跳过。",
    "合同将于三月三十一日到期，双方可以续签十二个月。",
    "升级之后，第九十九百分位的延迟从 420 毫秒升到 1.9 秒。",
    "为什么同一个查询在第二次执行时会更快？",
    "请列出三个可能的原因，并说明如何验证。",
    "传感器温度超过八十度时，控制器会关闭阀门。",
    "数据保留策略规定，对话记录保存九十天。",
    "他说“在我的机器上没有问题”，但这并没有帮助。",
    "请比较两份报价：价格、支持和迁移时间。",
];

const CODE: &str = "\n```python\ndef read(path):\n    with open(path, encoding=\"utf-8\") as lines:\n        for number, line in enumerate(lines, 1):\n            try:\n                yield number, json.loads(line)\n            except ValueError as error:\n                print(f\"{path}:{number}: {error}\\n\")\n```\n";

/// A prompt: around 3 KB, up to 30 KB.
pub(super) fn prompt(random: &mut Random, is_chinese: bool) -> String {
    // A few people paste whole documents: of some hundred prompts the exponential distribution alone would not make one.
    let bytes = match random.chance(0.03) {
        true => random.between(15_000, 30_000) as usize,
        false => random.size(60, 2_800, 30_000),
    };
    let mut prompt = String::with_capacity(bytes + 200);
    while prompt.len() < bytes {
        sentence(random, is_chinese, &mut prompt);
    }
    prompt.truncate(prompt.floor_char_boundary(bytes.max(20)));
    prompt
}

/// An answer of `count` tokens.
pub(super) fn answer(random: &mut Random, is_chinese: bool, count: usize) -> Vec<String> {
    let mut text = String::new();
    while text.len() < count * 6 {
        sentence(random, is_chinese, &mut text);
    }
    tokens(random, &text, count)
}

fn sentence(random: &mut Random, is_chinese: bool, out: &mut String) {
    if random.chance(0.03) {
        out.push_str(CODE);
    }
    if is_chinese && random.chance(0.8) {
        out.push_str(random.one(&CHINESE));
    } else {
        out.push_str(random.one(&ENGLISH));
        out.push(' ');
    }
    if random.chance(0.15) {
        out.push_str("\n\n");
    }
}

/// The first `count` tokens of a text: a short word or a piece of a long one with the blank before it, or one or two Chinese
/// characters.
pub(super) fn tokens(random: &mut Random, text: &str, count: usize) -> Vec<String> {
    let mut tokens = Vec::with_capacity(count);
    let mut rest = text;
    while !rest.is_empty() && tokens.len() < count {
        let is_wide = rest.chars().next().is_some_and(|c| c.len_utf8() > 1);
        let longest = if is_wide { random.between(1, 2) } else { random.between(3, 7) } as usize;
        let end = rest
            .char_indices()
            .skip(1)
            .enumerate()
            .find(|(taken, (_, c))| taken + 1 >= longest || *c == ' ' || (c.len_utf8() > 1) != is_wide)
            .map_or(rest.len(), |(_, (at, _))| at);
        let (token, after) = rest.split_at(end);
        tokens.push(token.to_owned());
        rest = after;
    }
    tokens
}

/// `text` as JSON.
pub(super) fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
