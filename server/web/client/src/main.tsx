import { render } from "preact";
import { App } from "./App";
import { language } from "./i18n";
import { restore } from "./matrix/session";
import "./style.css";

document.documentElement.lang = language.value;
render(<App />, document.getElementById("app")!);
restore().catch((error) => {
    console.error("restore the session", error);
    localStorage.removeItem("parley.session");
    location.reload();
});
