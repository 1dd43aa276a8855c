// The tests of the logic that the app shares with every exported bundle: gradle :logic:test
plugins { id("org.jetbrains.kotlin.jvm") }

sourceSets["main"].kotlin.setSrcDirs(listOf("../../../lightning_prune/deploy/sample/kotlin/logic"))

dependencies { testImplementation("junit:junit:4.13.2") }
