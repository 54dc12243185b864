const data = JSON.parse(document.getElementById("data").textContent);
startTable(data);
startLearning(data);
startDiscrimination(data);
startThreshold(data);
startCalibration(data);
startGrid(data);

// On paper nothing can be opened.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

// The section being read is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.getAttribute("href").slice(1), link]));
const watched = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-20% 0px -70% 0px" },
);
document.querySelectorAll("main > section[id]").forEach((section) => links.has(section.id) && watched.observe(section));
