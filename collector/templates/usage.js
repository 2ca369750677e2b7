// Comfort only: without it the form does the same. Keeps the key in this tab alone, and the numbers fresh.
(() => {
  const at = (id) => document.getElementById(id);
  const form = at("form"), numbers = at("numbers"), message = at("message"), forget = at("forget");
  const keep = (key) => { try { key ? sessionStorage.setItem("key", key) : sessionStorage.removeItem("key"); } catch { /* not kept */ } };
  const kept = () => { try { return sessionStorage.getItem("key"); } catch { return null; } };
  let timer, turn = 0;

  const leave = (why) => {
    turn += 1;
    clearTimeout(timer);
    keep("");
    numbers.replaceChildren();
    message.textContent = why;
    form.hidden = false;
    forget.hidden = true;
  };

  const show = async (key) => {
    clearTimeout(timer);
    const mine = turn += 1;
    let answer, text;
    try {
      answer = await fetch("usage/data", { headers: { Authorization: "Bearer " + key }, cache: "no-store", credentials: "omit" });
      text = await answer.text();
    } catch { /* no answer, or a key that no header can hold */ }
    if (mine !== turn) return;
    if (answer && answer.status === 401) return leave(message.dataset.refused);
    if (answer && answer.ok) {
      keep(key);
      numbers.innerHTML = text;
      form.elements.key.value = "";
      form.hidden = true;
      forget.hidden = false;
    }
    message.textContent = answer && answer.ok ? "" : message.dataset.away;
    timer = setTimeout(show, 60000, key);
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const key = form.elements.key.value.trim();
    if (key) show(key);
  });
  forget.addEventListener("click", () => leave(""));
  if (kept()) show(kept());
})();
