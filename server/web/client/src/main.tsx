import { render } from "preact";
import { First } from "./First";
import { language } from "./i18n";
import "./style.css";

document.documentElement.lang = language.value;
render(<First />, document.getElementById("app")!);
