() => {
  // Ctrl+V anywhere on the page hands a copied image to the image field.
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((item) => item.type.startsWith("image/"));
    const field = document.querySelector("#image input[type=file]");
    if (!file || !field) return;
    event.preventDefault();
    const files = new DataTransfer();
    files.items.add(file);
    field.files = files.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });
  // What a screen reader is told: answers as they come, and what the choices are for.
  document.querySelector("#answers")?.setAttribute("aria-live", "polite");
  const mode = document.querySelector("#mode .wrap:has(input)");
  mode?.setAttribute("role", "radiogroup");
  mode?.setAttribute("aria-label", "Vision tokens");
}
