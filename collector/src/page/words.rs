//! The words of the page, in the languages there are.

/// One language.
#[derive(Debug)]
#[allow(missing_docs, reason = "each says what it is for")]
pub struct Words {
    pub lang: &'static str,
    pub title: &'static str,
    pub key: &'static str,
    pub show: &'static str,
    pub forget: &'static str,
    pub about: &'static str,
    pub refused: &'static str,
    pub away: &'static str,
    pub as_of: &'static str,
    pub waiting: &'static str,
    pub today: &'static str,
    pub month: &'static str,
    pub thirty_days: &'static str,
    pub tokens: &'static str,
    pub prompt: &'static str,
    pub completion: &'static str,
    pub estimated: &'static str,
    pub calls: &'static str,
    pub failed: &'static str,
    pub cost: &'static str,
    pub nothing: &'static str,
    pub limits: &'static str,
    pub limit: &'static str,
    pub used_of: &'static str,
    pub left: &'static str,
    pub resets: &'static str,
    pub all_calls: &'static str,
    pub an_hour: &'static str,
    pub a_day: &'static str,
    pub a_week: &'static str,
    pub a_month: &'static str,
    pub everybody: &'static str,
    pub team: &'static str,
    pub by_day: &'static str,
    pub by_model: &'static str,
    pub days: &'static str,
    pub day: &'static str,
    pub model: &'static str,
    pub others: &'static str,
    pub unknown: &'static str,
    pub last_calls: &'static str,
    pub time: &'static str,
    pub status: &'static str,
    pub duration: &'static str,
}

const ENGLISH: Words = Words {
    lang: "en",
    title: "My usage",
    key: "Your key",
    show: "Show",
    forget: "Forget the key",
    about: "Enter the key with which you call the models. It is kept in this tab only, and only until you close it.",
    refused: "This key is not valid. Check that you copied all of it; if it has expired, ask for a new one.",
    away: "The numbers cannot be read at the moment. Please try again in a minute.",
    as_of: "as of",
    waiting: "Calls that wait now",
    today: "Today",
    month: "This month",
    thirty_days: "30 days",
    tokens: "Tokens",
    prompt: "in",
    completion: "out",
    estimated: "Estimated besides",
    calls: "calls",
    failed: "failed",
    cost: "Cost",
    nothing: "No calls in the last 30 days.",
    limits: "Limits",
    limit: "Limit",
    used_of: "Used",
    left: "Left",
    resets: "Resets",
    all_calls: "Calls",
    an_hour: "an hour",
    a_day: "a day",
    a_week: "a week",
    a_month: "a month",
    everybody: "all users together",
    team: "team",
    by_day: "Tokens a day",
    by_model: "Models, 30 days",
    days: "Days",
    day: "Day",
    model: "Model",
    others: "others",
    unknown: "unknown",
    last_calls: "Last calls",
    time: "Time",
    status: "Status",
    duration: "Duration",
};

const CHINESE: Words = Words {
    lang: "zh-CN",
    title: "我的用量",
    key: "您的密钥",
    show: "查看",
    forget: "忘记密钥",
    about: "请输入您调用模型所用的密钥。密钥只保存在本标签页中，关闭后即清除。",
    refused: "密钥无效。请检查是否复制完整；如已过期，请申请新的密钥。",
    away: "暂时无法读取数据，请稍后再试。",
    as_of: "截至",
    waiting: "正在排队的调用",
    today: "今天",
    month: "本月",
    thirty_days: "30 天",
    tokens: "令牌",
    prompt: "输入",
    completion: "输出",
    estimated: "另有估算",
    calls: "次调用",
    failed: "次失败",
    cost: "费用",
    nothing: "最近 30 天没有调用。",
    limits: "限额",
    limit: "限额",
    used_of: "已用",
    left: "剩余",
    resets: "重置时间",
    all_calls: "调用",
    an_hour: "每小时",
    a_day: "每天",
    a_week: "每周",
    a_month: "每月",
    everybody: "所有用户合计",
    team: "团队",
    by_day: "每天的令牌数",
    by_model: "各模型（30 天）",
    days: "按天",
    day: "日期",
    model: "模型",
    others: "其他",
    unknown: "未知",
    last_calls: "最近的调用",
    time: "时间",
    status: "状态",
    duration: "耗时",
};

impl Words {
    /// The language that somebody reads best, by `Accept-Language`; of equal ones the first.
    pub fn for_reader(accept_language: &str) -> &'static Self {
        let mut best: (f32, &'static Self) = (0.0, &ENGLISH);
        for item in accept_language.split(',') {
            let mut parts = item.split(';');
            let tag = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.trim().strip_prefix("q=")).map_or(Ok(1.0), str::parse).unwrap_or(0.0);
            let words = match tag.split('-').next() {
                Some("zh") => &CHINESE,
                Some("en") => &ENGLISH,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, words);
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_the_one_that_is_read_best() {
        for (accept, lang) in [
            ("", "en"),
            ("de,fr;q=0.5", "en"),
            ("zh", "zh-CN"),
            ("zh-TW,en;q=0.5", "zh-CN"),
            ("ZH-cn", "zh-CN"),
            ("en;q=0.8, zh;q=0.9", "zh-CN"),
            ("en-US,en;q=0.9,zh;q=0.8", "en"),
            ("zh;q=0", "en"),
            ("zh;q=x", "en"),
            ("de, zh;q=0.3", "zh-CN"),
            (";;;,,q=", "en"),
        ] {
            assert_eq!(Words::for_reader(accept).lang, lang, "{accept}");
        }
    }
}
