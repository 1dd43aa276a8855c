// For the Android Gradle Plugin 9 and later, which compiles Kotlin by itself; the README says what an earlier one needs.
plugins { id("com.android.library") }

android {
    namespace = "org.lightningprune"
    compileSdk = 36
    defaultConfig { minSdk = 23 }
    sourceSets.getByName("main") {
        manifest.srcFile("AndroidManifest.xml")
        kotlin.directories.addAll(listOf("logic", "runtime"))
        assets.directories.add("assets")
    }
}

dependencies {
    api("org.pytorch:executorch-android:1.4.1")
    api("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
}
