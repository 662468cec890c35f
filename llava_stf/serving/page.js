() => {
  const answers = document.querySelector("#answers");
  const notice = document.querySelector("#notice .problem");
  const field = () => document.querySelector("#image input[type=file]");

  // What the server would refuse or the toolkit words in its own way is said here, before it is sent.
  const problem = (files) => {
    const limit = Number(document.querySelector("[data-max-bytes]").dataset.maxBytes);
    const file = files[0];
    if (!file) return "";
    if (file.type && !file.type.startsWith("image/")) return `${file.name} is no image: expected a PNG, JPEG, WebP or another image file.`;
    if (file.size > limit) return `${file.name} is too large: it has ${file.size.toLocaleString("en")} bytes, and ${limit.toLocaleString("en")} can be sent; make it smaller.`;
    return "";
  };
  const say = (sentence) => {
    notice.textContent = sentence;
    notice.hidden = !sentence;
  };
  const check = (event, files) => {
    const sentence = problem(files);
    say(sentence);
    if (!sentence) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    bringIntoSight(notice);
  };
  window.addEventListener("change", (event) => event.target === field() && check(event, event.target.files), true);
  window.addEventListener("drop", (event) => event.target.closest?.("#image") && check(event, event.dataTransfer.files), true);

  // Ctrl+V anywhere on the page hands a copied image to the image field.
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
    if (!file || !field()) return;
    event.preventDefault();
    const files = new DataTransfer();
    files.items.add(file);
    field().files = files.files;
    field().dispatchEvent(new Event("change", { bubbles: true }));
  });

  // On a small screen the answer would come below the fold, or behind the keyboard.
  const bringIntoSight = (part) => {
    const place = part.getBoundingClientRect();
    if (place.top >= 0 && place.bottom <= window.innerHeight) return;
    if (document.activeElement?.tagName === "TEXTAREA" && matchMedia("(max-width: 640px)").matches) document.activeElement.blur();
    part.scrollIntoView({ block: "start" });
  };
  let asked = false;
  const ask = () => { asked = true; say(""); };
  document.querySelector("#ask").addEventListener("click", ask);
  document.querySelector("#question").addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && ask());
  new MutationObserver(() => {
    const part = answers.querySelector(".answers, .problem");
    if (!asked || !part || !part.matches(".problem, :has(.running)")) return;
    asked = false;
    bringIntoSight(part);
  }).observe(answers, { childList: true, subtree: true });

  // Nothing more comes from the server after Stop.
  window.llavaStfMarkStopped = () => {
    for (const part of answers.querySelectorAll(".running, .waiting")) {
      const mark = document.createElement("em");
      mark.className = "mark";
      mark.textContent = part.matches(".waiting") ? "Not asked." : part.textContent.trim() ? " (stopped)" : "Stopped before the first word.";
      part.append(mark);
      part.classList.remove("running", "waiting");
    }
    document.querySelector("#question textarea").focus({ preventScroll: true });
  };

  // What a screen reader is told: answers as they come, and what the choices are for.
  answers.setAttribute("aria-live", "polite");
  const mode = document.querySelector("#mode .wrap:has(input)");
  mode?.setAttribute("role", "radiogroup");
  mode?.setAttribute("aria-label", "Vision tokens");
}
