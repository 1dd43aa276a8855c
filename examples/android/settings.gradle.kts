pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "DigitPad"
include(":app", ":logic")

// The bundle that `python examples/phones.py` writes.
include(":model")
