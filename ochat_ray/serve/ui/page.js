// The conversations: in this browser's local storage, and nowhere else.
window.ochat = (() => {
  const user = window.gradio_config?.username ?? "";
  const STORE = `ochat_ray.conversations.${user}`;
  const CURRENT = "ochat_ray.current";
  let current = sessionStorage.getItem(CURRENT);
  // The conversation that an answer is being written for.
  let answering = null;

  const read = () => {
    try { return JSON.parse(localStorage.getItem(STORE)) ?? []; } catch { return []; }
  };
  // Read again each time: another tab may have written.
  const write = (conversations) => {
    for (;;) {
      try { return localStorage.setItem(STORE, JSON.stringify(conversations)); }
      catch (error) {
        if (conversations.length < 2) throw error;
        conversations = conversations.slice(0, -1); // full: the oldest goes
      }
    }
  };
  const setCurrent = (id) => {
    current = id;
    if (id) sessionStorage.setItem(CURRENT, id); else sessionStorage.removeItem(CURRENT);
  };

  const plain = (content) => typeof content === "string" ? content
    : content.map((part) => part.text ?? "").join("");
  // What the chat shows, as OpenAI's messages; notices have a title and are none.
  const messages = (chat) => (chat ?? []).filter((m) => !m.metadata?.title)
    .map((m) => ({ role: m.role, content: plain(m.content) }));
  const shown = (list) => list.map((m) => ({
    role: m.role, content: [{ type: "text", text: m.content }], metadata: null, options: null,
  }));
  const update = (fields) => ({ __type__: "update", ...fields });
  const buttons = (busy) => update({ submit_btn: !busy, stop_btn: busy });
  const title = (list) => {
    const first = list.find((m) => m.role === "user")?.content.trim().split("\n")[0] ?? "";
    return first.length > 60 ? `${first.slice(0, 60)}…` : first || "New chat";
  };

  const list = () => update({
    choices: read().map((c) => [title(c.messages), c.id]), value: current,
  });
  const save = (list, system) => {
    if (!list.length) return;
    if (!current) setCurrent(crypto.randomUUID?.() ?? String(Date.now() + Math.random()));
    const others = read(), at = others.findIndex((c) => c.id === current);
    const old = at < 0 ? {} : others.splice(at, 1)[0];
    write([{ ...old, id: current, system: system ?? old.system ?? "", messages: list }, ...others]);
  };

  // What is no number is sent as it is: the endpoint says what is wrong with it.
  const number = (text) => /^-?\d{1,15}$/.test(text.trim()) ? Number(text) : text;
  const ask = (list, [model, system, temperature, top_p, limit, seed]) => {
    save(list, system);
    answering = current;
    const body = { model, temperature, top_p,
      messages: [...(system.trim() ? [{ role: "system", content: system }] : []), ...list] };
    if (limit.trim()) body.max_tokens = number(limit);
    if (seed.trim()) body.seed = number(seed);
    return [update({ value: "", submit_btn: false, stop_btn: true }), shown(list),
      JSON.stringify(body)];
  };
  const ignore = () => [undefined, undefined, ""];
  const upToUser = (list) => list.slice(0, list.findLastIndex((m) => m.role === "user") + 1);

  const show = (id) => {
    answering = null;
    const found = read().find((c) => c.id === id);
    setCurrent(found?.id ?? null);
    return [shown(found?.messages ?? []), found?.system ?? ""];
  };
  // On a small screen the list of conversations lies over the chat.
  const wide = () => window.innerWidth > 768;
  const side = () => wide() ? undefined : update({ open: false });
  const opened = (id) => [...show(id), buttons(false), list(), side()];

  const download = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    return [];
  };
  const conversation = (chat, system) => [
    ...(system.trim() ? [{ role: "system", content: system }] : []), ...messages(chat)];

  return {
    load: () => [...show(current), list(), side()],
    open: opened,
    start: () => opened(null),
    remove: () => {
      write(read().filter((c) => c.id !== current));
      return opened(null);
    },
    send: (text, chat, ...settings) => {
      if (!text.trim() || answering) return ignore();
      return ask([...messages(chat), { role: "user", content: text }], settings);
    },
    retry: (chat, ...settings) => {
      const list = upToUser(messages(chat));
      return list.length && !answering ? ask(list, settings) : ignore();
    },
    edit: (edited, chat, ...settings) => {
      const [index, text] = JSON.parse(edited);
      if (answering || !text.trim()) return ignore();
      return ask([...messages(chat.slice(0, index)), { role: "user", content: text }], settings);
    },
    undo: (chat) => {
      const list = upToUser(messages(chat)), last = list.pop();
      save(list);
      return [last?.content ?? "", shown(list), window.ochat.list()];
    },
    done: (chat) => {
      // Another conversation may be shown by now.
      if (answering && answering === current) save(messages(chat));
      answering = null;
      return [undefined, buttons(false), list()];
    },
    list,
    logOut: async () => {
      await fetch("./logout", { method: "POST" });
      location.reload();
      return [];
    },
    exportJson: (chat, system) => download("conversation.json", "application/json",
      JSON.stringify({ messages: conversation(chat, system) }, null, 2)),
    exportMarkdown: (chat, system) => download("conversation.md", "text/markdown",
      conversation(chat, system).map((m) => `## ${m.role}\n\n${m.content}\n`).join("\n")),
  };
})();
